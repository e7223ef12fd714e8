"""A draft model of another vocabulary that shares the text, not the tokens.

It reads the committed text in its own tokens and its drafts are read back in the
target's (Timor et al., 2025, arXiv:2502.05202). `strings` proposes the chain that its
continuation spells, for exact matching (SLEM); `first_token` draws one token from the
law of the token that its continuation begins with, for rejection (SLRS).

Params of the role "drafter" are those of `tables`. A draft model may be longer-winded
than the target: its text has `per_token` tokens for each of the target's, and a row
whose text needs more drafts nothing.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode import rng, trees
from pdecode.contracts import (
    DraftCost,
    Drafter,
    Model,
    Params,
    Prefix,
    Query,
    Sampling,
    Visibility,
)
from pdecode.drafters import causal, ignore, ngram
from pdecode.kernels.head import api as vocab_head
from pdecode.models import translated
from pdecode.sampling import choose, without_mask

__all__ = [
    "WIDE",
    "Plan",
    "Trie",
    "first_token",
    "own_text",
    "read_back",
    "strings",
    "tables",
    "token_law",
]

WIDE = 16  # own tokens stored by one call
MOST = 2**28  # entries of the trie's table


class Trie(NamedTuple):
    """Target tokens by their spelling; node 0 is the start, parents come first."""

    child: Array  # int32 [T, own V]  -1: none
    token: Array  # int32 [T]  the target token that ends here; -1: none
    parent: Array  # int32 [T]
    own: Array  # int32 [T]  the token that leads here


class Plan(NamedTuple):
    """What a drafter of another vocabulary is made of."""

    model: Model
    num_draft: int  # own tokens
    per_token: int
    sampling: Sampling


def tables(
    params: Params,
    own_words: Mapping[str, int],
    words: Mapping[str, int],
    vocab_size: int,
) -> Params:
    """`params` of a model of `own_words`, with how it spells the target's `words`.

    A word is spelled by the longest own words that fit, from left to right; one that
    cannot be is not read and not drafted. ValueError if no word can be spelled, and for
    so many words on both sides that their table would be too large.
    """
    own = {translated.plain(word): index for word, index in own_words.items()}
    longest = max(map(len, own), default=0)
    spelled = {}
    for word, index in words.items():
        found = _spelled(translated.plain(word), own, longest)
        if found:
            spelled[index] = found
    if not spelled:
        raise ValueError(
            f"none of {len(words)} tokens can be spelled with {len(own)} others"
        )
    size = max(map(len, spelled.values()))
    spelling = np.full((vocab_size, size), -1, np.int32)
    child, token, parent, own_id = [{}], [-1], [-1], [-1]
    for index, found in spelled.items():
        spelling[index, : len(found)] = found
        node = 0
        for each in found:
            if each not in child[node]:
                child[node][each] = len(child)
                child.append({})
                token.append(-1)
                parent.append(node)
                own_id.append(each)
            node = child[node][each]
        token[node] = index
    shape = len(child), max(own.values()) + 1
    if shape[0] * shape[1] > MOST:
        raise ValueError(
            f"a table of {shape[0]} spellings by {shape[1]} tokens is too large: take "
            "a draft model of few tokens, or what it shares with the target "
            "(models.translated, NAME@shared)"
        )
    table = np.full(shape, -1, np.int32)
    for node, below in enumerate(child):
        for each, target in below.items():
            table[node, each] = target
    trie = Trie(*(jnp.asarray(x, jnp.int32) for x in (table, token, parent, own_id)))
    return {"own": params, "spelling": jnp.asarray(spelling), "trie": trie}


def strings(model: Model, num_draft: int, per_token: int) -> Drafter:
    """A chain spelled by the `num_draft` likeliest own tokens in turn."""
    plan = Plan(model, num_draft, per_token, without_mask(model, Sampling()))
    return Drafter(
        num_draft,
        num_draft,
        functools.partial(_init, plan),
        functools.partial(_propose_strings, plan),
        ignore,
    )


def first_token(model: Model, sampling: Sampling, per_token: int) -> Drafter:
    """One token drawn as the first that the model's continuation is read as.

    Its law: the continuation passes the token's end in the trie and not that of a
    longer one behind it. One call of all nodes of the trie that lead on.
    """
    plan = Plan(model, 0, per_token, without_mask(model, sampling))
    return Drafter(
        1, 1, functools.partial(_init, plan), functools.partial(_propose_first, plan),
        ignore, is_iid=True,
    )  # fmt: skip


def own_text(prefix: Prefix, spelling: Array, size: int) -> tuple[Array, Array]:
    """The committed text in own tokens int32 [B, size], and its length [B].

    Tokens that do not fit are left out, but counted.
    """
    place = jnp.arange(prefix.tokens.shape[1])[None]
    is_text = place < prefix.length[:, None]
    ids = jnp.where(is_text[..., None], spelling[prefix.tokens], -1)  # [B, L, M]
    sizes = (ids >= 0).sum(-1, dtype=jnp.int32)
    starts = jnp.cumsum(sizes, 1) - sizes
    at = starts[..., None] + jnp.arange(ids.shape[-1], dtype=jnp.int32)[None, None]
    at = jnp.where(ids >= 0, at, size)
    row = jnp.arange(ids.shape[0])[:, None, None]
    blank = jnp.zeros((ids.shape[0], size), jnp.int32)
    return blank.at[row, at].set(ids, mode="drop"), sizes.sum(1)


def read_back(drafted: Array, trie: Trie, longest: int) -> Array:
    """Target tokens int32 [B, K] that own tokens [B, K] spell; -1 pads.

    The longest token that fits, from left to right; what none begins with ends it.
    """
    # a b c with tokens "ab" (7) and "c" (9): 7 9 -1
    batch, count = drafted.shape
    padded = jnp.pad(drafted, ((0, 0), (0, longest)), constant_values=-1)
    node = jnp.zeros((batch, count), jnp.int32)
    found = jnp.full((batch, count), -1, jnp.int32)
    size = jnp.ones((batch, count), jnp.int32)
    for nth in range(longest):
        own = padded[:, nth : nth + count]
        is_on = (node >= 0) & (own >= 0) & (own < trie.child.shape[1])
        inside = jnp.clip(own, 0, trie.child.shape[1] - 1)
        node = jnp.where(is_on, trie.child[jnp.maximum(node, 0), inside], -1)
        here = jnp.where(node >= 0, trie.token[jnp.maximum(node, 0)], -1)
        found = jnp.where(here >= 0, here, found)
        size = jnp.where(here >= 0, nth + 1, size)

    def follow(place, _):
        inside = jnp.minimum(place, count - 1)[:, None]
        token = jnp.take_along_axis(found, inside, 1)[:, 0]
        token = jnp.where(place < count, token, -1)
        step = jnp.take_along_axis(size, inside, 1)[:, 0]
        return jnp.where(token >= 0, place + step, count), token

    start = jnp.zeros(batch, jnp.int32)
    _, tokens = jax.lax.scan(follow, start, length=count)
    return tokens.T


def _spelled(word: str, own: dict[str, int], longest: int) -> list[int]:
    """Own ids of `word`; [] if it cannot be spelled."""
    found, place = [], 0
    while place < len(word):
        for size in range(min(longest, len(word) - place), 0, -1):
            if word[place : place + size] in own:
                found.append(own[word[place : place + size]])
                place += size
                break
        else:
            return []
    return found


def _own_size(plan: Plan, prefix: Prefix) -> int:
    size = plan.per_token * prefix.tokens.shape[1]
    most = plan.model.max_positions
    return size if most is None else min(size, most - plan.num_draft)


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output):
    # The cache is filled by the first round, a few tokens a call.
    del params, keys, output
    size = _own_size(plan, prefix)
    room = plan.num_draft + WIDE
    cache = plan.model.init_cache(prompt, caches.num_slots(size + room))
    return causal.CausalState(cache, jnp.zeros_like(prefix.length))


def _read(plan: Plan, params, state: causal.CausalState, prefix: Prefix):
    """(hidden [B, 1, E] at the own text's end, state, what there is, calls [])."""
    own = params["drafter"]
    size = _own_size(plan, prefix)
    tokens, length = own_text(prefix, own["spelling"], size)
    fits = (length > 0) & (length <= size)
    length = jnp.clip(length, 1, size)
    text = prefix._replace(tokens=tokens, length=length)

    def lacks(carry):
        state, _, _ = carry
        return (jnp.minimum(state.written, length - 1) < length - WIDE).any()

    def store(carry):
        state, _, count = carry
        hidden, cache, _ = causal.store(plan.model, own["own"], state, text, WIDE)
        written = jnp.minimum(state.written, length - 1) + WIDE
        return (
            causal.CausalState(cache, jnp.minimum(written, length)),
            hidden,
            count + 1,
        )

    shape = jax.eval_shape(store, (state, None, jnp.zeros((), jnp.int32)))[1]
    begun = state, jnp.zeros(shape.shape, shape.dtype), jnp.zeros((), jnp.int32)
    state, _, count = jax.lax.while_loop(lacks, store, begun)
    state, hidden, count = store((state, None, count))
    return hidden, state, text, fits, count


def _propose_strings(plan: Plan, params, keys, state, prefix: Prefix):
    del keys
    own, model = params["drafter"], plan.model
    was = state.written
    hidden, state, text, fits, num_stored = _read(plan, params, state, prefix)

    def best(hidden):
        found = vocab_head.statistics(
            model.head(own["own"]), hidden, ("token",), plan.sampling
        )
        return found.token[:, 0]

    def deepen(carry, nth):
        token, cache = carry
        query = causal.chain_query(token[:, None], text.length + nth)
        output, cache = model.apply(own["own"], query, cache)
        return (best(output.hidden), cache), token

    nth = jnp.arange(plan.num_draft - 1, dtype=jnp.int32)
    begun = (best(hidden), state.cache)
    (last, cache), drafted = jax.lax.scan(deepen, begun, nth)
    drafted = jnp.concatenate([drafted.T, last[:, None]], 1)
    tokens = read_back(drafted, own["trie"], own["spelling"].shape[1])
    draft = ngram.chain(jnp.where(fits[:, None], tokens, -1))
    calls = jnp.broadcast_to(num_stored + plan.num_draft - 1, prefix.length.shape)
    lanes = num_stored * WIDE + plan.num_draft - 1
    cost = DraftCost(
        num_calls=calls,
        num_tokens=jnp.maximum(text.length - was, 1) + plan.num_draft - 1,
        num_tokens_computed=jnp.broadcast_to(lanes, prefix.length.shape),
    )
    # What was drafted may not be what is committed: only the text counts as stored.
    return draft._replace(cost=cost), causal.CausalState(cache, text.length)


def _propose_first(plan: Plan, params, keys, state, prefix: Prefix):
    own, model = params["drafter"], plan.model
    trie: Trie = own["trie"]
    was = state.written
    hidden, state, text, fits, num_stored = _read(plan, params, state, prefix)
    size = trie.token.shape[0]
    batch = prefix.length.shape[0]
    # Nodes but the start are lanes behind the text, a tree.
    parents = jnp.broadcast_to(trie.parent[1:] - 1, (batch, size - 1))
    reach = trees.ancestors(parents)
    root = text.length - 1
    query = Query(
        tokens=jnp.broadcast_to(trie.own[1:], parents.shape),
        positions=root[:, None] + trees.depths(reach)[:, 1:],
        slots=None,
        visible=Visibility(
            start=jnp.zeros_like(parents),
            stop=jnp.broadcast_to(root[:, None] + 1, parents.shape),
            among=reach[:, 1:, 1:],
        ),
    )
    output, _ = model.apply(own["own"], query, state.cache)
    hidden = jnp.concatenate([hidden, output.hidden], 1)
    probs = vocab_head.statistics(
        model.head(own["own"]), hidden, ("probs",), plan.sampling
    ).probs  # [B, T, own V]
    law = token_law(probs, trie, own["spelling"].shape[0])
    law = jnp.where(fits[:, None], law, 0)
    position = prefix.length[:, None]
    places = rng.noise(keys, rng.DRAFT, position, round=prefix.length - 1)
    token = choose(law, rng.gumbel(places, law.shape[-1])[:, 0])
    token = jnp.where(law.sum(-1) > 0, token, -1)
    cost = DraftCost(
        num_calls=jnp.broadcast_to(num_stored + 1, root.shape),
        num_tokens=jnp.maximum(text.length - was, 1) + size - 1,
        num_tokens_computed=jnp.broadcast_to(num_stored * WIDE + size - 1, root.shape),
    )
    draft = ngram.chain(token[:, None])._replace(q=law[:, None], cost=cost)
    return draft, causal.CausalState(state.cache, text.length)


def token_law(probs: Array, trie: Trie, vocab_size: int) -> Array:
    """The law float [B, V] of the first token that a continuation is read as.

    probs [B, T, own V] are the model's laws at each node of the trie. What begins with
    no token at all has the rest of the mass, and the law is scaled up to 1 without it.
    """
    size = trie.token.shape[0]
    above = jnp.maximum(trie.parent, 0)
    step = probs[:, above, jnp.maximum(trie.own, 0)]  # [B, T]
    is_token = trie.token >= 0

    def down(carry, node):
        reached, ends = carry
        here = jnp.where(node == 0, 1.0, reached[:, above[node]] * step[:, node])
        # The longest token on the way: its end loses what a longer one takes.
        before = jnp.where(node == 0, 0, ends[above[node]])
        ends = ends.at[node].set(jnp.where(is_token[node], node, before))
        return (reached.at[:, node].set(here.astype(reached.dtype)), ends), before

    begun = jnp.zeros_like(step), jnp.zeros(size, jnp.int32)
    nodes = jnp.arange(size, dtype=jnp.int32)
    (reached, _), before = jax.lax.scan(down, begun, nodes)
    taken = jnp.where(is_token[None], reached, 0)
    # Node 0 is no token: what would be lost there is dropped below.
    left = taken.at[:, before].add(-taken)
    at = jnp.where(is_token, trie.token, vocab_size)
    law = jnp.zeros((probs.shape[0], vocab_size), probs.dtype)
    law = law.at[:, at].add(jnp.maximum(left, 0), mode="drop")
    total = law.sum(-1, keepdims=True)
    return jnp.where(total > 0, law / jnp.where(total > 0, total, 1), 0)
