"""Exact toy models: a known joint law served as a `Model`, for studying a rule exactly.

A toy answers each query from exactly the keys that the query sees, with the true
conditional law given the (position, token) pairs of those keys. A stale slot, a wrong
mask, a wrong position or a bad compaction therefore changes the numbers. Its hidden
state is the vector of log-probabilities and its head is the identity.

The same joint serves causal queries (predict the next position) and masked ones
(predict their own); trees, probes, blocks and any order are only `Visibility`.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Head, Model, Output, Prompt, Query

IMPOSSIBLE = -1e9  # finite: log-probabilities are multiplied by guidance scales


class Table(NamedTuple):
    """An explicit law: K strings and their log-probabilities. The toy's params."""

    strings: Array  # int32 [K, L]
    log_probs: Array  # [K]


class Chain(NamedTuple):
    """A Markov law whose transitions differ by position. The toy's params.

    `moves[i, j]` takes position i - 1 to position j: row i = 0 stands before the first
    position and column j = L behind the last (all ones), so every conditional of the
    chain is a product of two entries.
    """

    moves: Array  # [L + 1, L + 1, V, V]


def table(strings, probs) -> Table:
    """A Table from strings (int [K, L]) and their probs [K]; ValueError if no law."""
    strings, probs = np.asarray(strings, np.int32), np.asarray(probs, np.float64)
    if strings.ndim != 2 or probs.shape != strings.shape[:1]:
        raise ValueError(f"need [K, L] and [K], got {strings.shape} and {probs.shape}")
    if abs(probs.sum() - 1) > 1e-6 or (probs < 0).any():
        raise ValueError(f"probs must be a law, but they sum to {probs.sum():g}")
    with np.errstate(divide="ignore"):
        log_probs = np.maximum(np.log(probs), IMPOSSIBLE)
    return Table(jnp.asarray(strings), jnp.asarray(log_probs))


def joint(seed: int, vocab: int = 3, length: int = 5, sharpness: float = 1.5) -> Table:
    """A random full-support law over all `vocab ** length` strings."""
    strings = np.array(list(itertools.product(range(vocab), repeat=length)), np.int32)
    rng = np.random.default_rng(seed)
    # Random potentials on all pairs of positions: dependence at every distance.
    energy = sharpness * 0.5 * rng.normal(size=(length, length, vocab, vocab))
    score = rng.normal(size=len(strings)) * 0.3
    for i, j in itertools.combinations_with_replacement(range(length), 2):
        score += energy[i, j, strings[:, i], strings[:, j]]
    probs = np.exp(score - score.max())
    return table(strings, probs / probs.sum())


def chain(seed: int, vocab: int = 4, length: int = 32, sharpness: float = 1.5) -> Chain:
    """A random Markov law with a different transition matrix at every position."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(length, vocab, vocab)) * sharpness
    scores[0] = scores[0, :1]  # the first position follows nothing
    steps = np.exp(scores - scores.max(-1, keepdims=True))
    return _chain(steps / steps.sum(-1, keepdims=True))


def _chain(steps: np.ndarray) -> Chain:
    """From `steps` [L, V, V], the transition into each position."""
    length, vocab = steps.shape[:2]
    moves = np.zeros((length + 1, length + 1, vocab, vocab))
    moves[:, length] = 1
    for first in range(length):
        product = np.eye(vocab)
        for position in range(first, length):
            product = product @ steps[position]
            moves[first, position] = product
    return Chain(jnp.asarray(moves))


def mixed(target: Table | Chain, other: Table | Chain, weight: float):
    """A law near `target`, for drafters: logs are mixed with `weight` on `other`."""
    if isinstance(target, Table) and isinstance(other, Table):
        log_probs = (1 - weight) * target.log_probs + weight * other.log_probs
        return Table(target.strings, jax.nn.log_softmax(log_probs))
    if isinstance(target, Chain) and isinstance(other, Chain):
        here = np.arange(target.moves.shape[0] - 1)
        mine, its = (np.asarray(law.moves)[here, here] for law in (target, other))
        steps = mine ** (1 - weight) * its**weight
        return _chain(steps / steps.sum(-1, keepdims=True))
    raise TypeError(f"{type(target).__name__} and {type(other).__name__} differ")


@functools.cache
def make_model(
    vocab: int,
    length: int,
    *,
    predicts: str = "next",
    attention: str | None = None,
    block_len: int | None = None,
    eos_ids: tuple[int, ...] = (),
    mask_logit: float = -2.0,
) -> Model:
    """The Model of a toy over `vocab` tokens and `length` positions.

    Params are a Table or a Chain of those sizes. Token id `vocab` is the mask: it says
    nothing as a key, and its logit beside log-probabilities is `mask_logit`: by default
    it has 0.12 of the mass, as an undertrained model might give it, so that forgetting
    to ban it shows and confidences stay what papers compare them with.
    """
    shift = 1 if predicts == "next" else 0
    apply = functools.partial(
        _apply, vocab=vocab, length=length, shift=shift, mask_logit=mask_logit
    )
    return Model(
        init_cache=_init_cache,
        apply=apply,
        encode=apply,
        head=functools.partial(_head, vocab=vocab),
        move=caches.move,
        vocab_size=vocab + 1,
        mask_id=vocab,
        eos_ids=eos_ids,
        predicts=predicts,
        attention=attention or ("causal" if predicts == "next" else "bidirectional"),
        block_len=block_len,
        max_positions=length,
        name="toy",
    )


def _init_cache(prompt: Prompt, num_slots: int):
    # A key is (token, position); -1 is an empty slot.
    return {"keys": jnp.full((prompt.tokens.shape[0], 1, num_slots, 2), -1, jnp.int32)}


def _head(params: Table | Chain, *, vocab: int) -> Head:
    return Head(weight=jnp.eye(vocab + 1, dtype=_dtype(params)))


def _apply(params, query: Query, cache, *, vocab, length, shift, mask_logit):
    own = jnp.stack([query.tokens, query.positions], -1)[:, None]
    keys = caches.write(cache["keys"], query.slots, own)
    seen, mask = _seen(query, keys, own)

    token, position = seen[..., 0], seen[..., 1]  # [B, K]
    hot = (
        jax.nn.one_hot(token, vocab)[:, :, None]
        * jax.nn.one_hot(position, length)[..., None]
    )
    counts = jnp.einsum("bqk,bklv->bqlv", mask.astype(jnp.float32), hot)
    total = counts.sum(-1, keepdims=True)
    forbidden = total > counts  # another token was observed there
    target = query.positions + shift
    log_probs = _marginal(params, forbidden, jnp.clip(target, 0, length - 1))
    outside = (target < 0) | (target >= length)
    log_probs = jnp.where(outside[..., None], -jnp.log(float(vocab)), log_probs)
    # A key seen twice must show: attention would weigh it twice.
    excess = jnp.maximum(total[..., 0] - 1, 0).sum(-1)
    log_probs = log_probs + excess[..., None] * jnp.arange(vocab)[None, None]
    mask = jnp.full((*log_probs.shape[:-1], 1), mask_logit, log_probs.dtype)
    hidden = jnp.concatenate([log_probs, mask], -1).astype(_dtype(params))
    return Output(hidden), {"keys": keys}


def _seen(query: Query, keys: Array, own: Array):
    """Keys [B, K, 2] and mask [B, Q, K]: the cache, then the call's own lanes."""
    visible = query.visible
    slot = jnp.arange(keys.shape[2])[None, None]
    mask = (visible.start[..., None] <= slot) & (slot < visible.stop[..., None])
    if visible.written is not None:
        mask &= visible.written[:, None]
    keys = keys[:, 0]
    if visible.among is not None:
        keys = jnp.concatenate([keys, own[:, 0]], 1)
        mask = jnp.concatenate([mask, visible.among], -1)
    return keys, mask


def _marginal(params, forbidden: Array, target: Array) -> Array:
    """Log-law [B, Q, V] of position `target` given what is `forbidden` [B, Q, L, V].

    Evidence that no string satisfies gives the uniform law.
    """
    if isinstance(params, Table):
        hot = jax.nn.one_hot(params.strings, forbidden.shape[-1], dtype=jnp.float32)
        clash = jnp.einsum("bqlv,klv->bqk", forbidden.astype(jnp.float32), hot) > 0
        weight = jnp.where(clash, 0.0, jnp.exp(params.log_probs)[None, None])
        every = jnp.einsum("bqk,klv->bqlv", weight, hot.astype(weight.dtype))
        picked = jnp.take_along_axis(every, target[..., None, None], 2)[:, :, 0]
    else:
        picked = _chain_marginal(params, forbidden, target)
    total = picked.sum(-1, keepdims=True)
    probs = jnp.where(total > 0, picked / jnp.where(total > 0, total, 1), 0)
    log_probs = jnp.where(
        probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), IMPOSSIBLE
    )
    return jnp.where(total > 0, log_probs, -jnp.log(float(probs.shape[-1])))


def _chain_marginal(params: Chain, forbidden: Array, target: Array) -> Array:
    """Unnormalised law [B, Q, V]: the nearest observations on both sides decide."""
    length = forbidden.shape[2]
    place = jnp.arange(length)[None, None]
    observed = forbidden.any(-1)
    token = jnp.argmax(~forbidden, -1)  # of an observed position
    here = target[..., None]
    left = jnp.where(observed & (place < here), place, -1).max(-1)
    right = jnp.where(observed & (place > here), place, length).min(-1)

    def token_at(position):
        inside = jnp.clip(position, 0, length - 1)[..., None]
        return jnp.take_along_axis(token, inside, 2)[..., 0]

    before = params.moves[left + 1, target, jnp.where(left >= 0, token_at(left), 0)]
    after = params.moves[
        target + 1, right, :, jnp.where(right < length, token_at(right), 0)
    ]
    open_here = ~jnp.take_along_axis(forbidden, here[..., None], 2)[:, :, 0]
    clash = forbidden.all(-1).any(-1)  # one position observed with two tokens
    return jnp.where(clash[..., None], 0, before * after * open_here)


def _dtype(params: Table | Chain):
    return jax.tree.leaves(params)[-1].dtype
