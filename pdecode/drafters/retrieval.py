"""Drafts retrieved from texts outside the context: a tree of frequent continuations.

The texts are a `data.datastore`, arrays among the params that only the search reads.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, Prefix
from pdecode.data.datastore import BEFORE, BETWEEN, Store, Texts
from pdecode.drafters import ignore
from pdecode.sampling import among

__all__ = ["Plan", "continuations", "merged", "retrieval", "trie"]


class Plan(NamedTuple):
    """Sizes of a search."""

    max_match: int  # tokens compared
    min_match: int  # a shorter copy is none
    num_matches: int  # M, places that are read
    length: int  # T, tokens read at each
    num_nodes: int  # N


def retrieval(
    store: Store,
    num_nodes: int,
    *,
    min_match: int = 2,
    num_matches: int = 64,
    length: int = 10,
) -> Drafter:
    """Drafter of the `num_nodes` most frequent prefixes of what follows copies.

    Copies are those of the longest end of the text that has any, at least `min_match`
    tokens; of more than `num_matches` places, so many evenly spaced ones are read, each
    for `length` tokens. A round costs three binary searches and a table of [M, M,
    length]. Raises ValueError if `min_match` is more than the store is sorted by.
    """
    if not 1 <= min_match <= store.max_match:
        raise ValueError(
            f"{min_match=} must lie in [1, {store.max_match}], which the datastore is "
            "sorted by"
        )
    if num_nodes > num_matches * length:
        raise ValueError(
            f"{num_nodes=} of at most {num_matches * length} tokens read: raise "
            "num_matches or length"
        )
    plan = Plan(store.max_match, min_match, num_matches, length, num_nodes)

    def init(params, keys, prompt, prefix, output):
        del params, keys, prompt, prefix, output
        return ()

    def propose(params, keys, state, prefix: Prefix):
        del keys
        texts = Texts(*map(jnp.asarray, params["corpus"]))

        def one(tokens: Array, size: Array) -> tuple[Array, Array]:
            matches = continuations(plan, texts, tokens, size)
            return trie(matches, plan.num_nodes)

        tokens, parents = jax.vmap(one)(prefix.tokens, prefix.length)
        return Draft(tokens=tokens, parents=parents), state

    depth = min(length, num_nodes)
    return Drafter(num_nodes, depth, init, propose, ignore)


def continuations(plan: Plan, texts: Texts, tokens: Array, size: Array) -> Array:
    """What follows the longest copies of one row's text int32 [M, T]; -1 pads."""
    back = jnp.arange(plan.max_match, dtype=jnp.int32)
    end = jnp.where(back < size, tokens[jnp.maximum(size - 1 - back, 0)], BEFORE - 1)
    search = functools.partial(_first, texts, end)
    close = search(plan.max_match, False)
    near = jnp.stack([close - 1, close])
    agreed = jax.vmap(lambda k: _agreed(texts, end, k))(near)
    is_there = (near >= 0) & (near < texts.order.shape[0])
    matched = jnp.where(is_there, agreed, 0).max()
    low, high = search(matched, False), search(matched, True)
    found = jnp.where(matched >= plan.min_match, high - low, 0)
    nth = jnp.arange(plan.num_matches, dtype=jnp.int32)
    # nth * found / M without a product that overflows.
    spaced = nth * (found // plan.num_matches)
    spaced += nth * (found % plan.num_matches) // plan.num_matches
    nth = jnp.where(found > plan.num_matches, spaced, nth)
    place = texts.order[jnp.minimum(low + nth, texts.order.shape[0] - 1)]
    place = place[:, None] + jnp.arange(plan.length)[None]
    last = texts.tokens.shape[0] - 1
    follow = jnp.where(place > last, BETWEEN, texts.tokens[jnp.minimum(place, last)])
    is_text = jnp.cumprod(follow >= 0, 1) > 0
    is_match = jnp.arange(plan.num_matches) < found
    return jnp.where(is_text & is_match[:, None], follow, -1)


def merged(
    store: Store,
    other: Store,
    num_nodes: int,
    *,
    weights: tuple[Any, Any] = (1, 1),
    skipped: tuple[int, ...] = (),
    min_match: int = 2,
    num_matches: int = 64,
    length: int = 10,
) -> Drafter:
    """`retrieval` from two datastores, where each copy counts its store's weight.

    Params are those of the roles "corpus" and "other". Behind one of the ids `skipped`
    a row drafts nothing; where that holds for all rows nothing is searched. Weights are
    whole numbers.
    """
    sizes = {"min_match": min_match, "num_matches": num_matches, "length": length}
    found, _ = (retrieval(each, num_nodes, **sizes) for each in (store, other))
    plans = [
        Plan(each.max_match, min_match, num_matches, length, num_nodes)
        for each in (store, other)
    ]

    def propose(params, keys, state, prefix: Prefix):
        del keys
        texts = [Texts(*map(jnp.asarray, params[r])) for r in ("corpus", "other")]

        def one(tokens: Array, size: Array) -> tuple[Array, Array]:
            matches = [
                continuations(plan, each, tokens, size)
                for plan, each in zip(plans, texts)
            ]
            weight = jnp.repeat(jnp.stack([*map(jnp.int32, weights)]), num_matches)
            return trie(jnp.concatenate(matches), num_nodes, weight)

        root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)[:, 0]
        is_asked = ~among(root, skipped)

        def search():
            return jax.vmap(one)(prefix.tokens, prefix.length)

        def none():
            blank = jnp.full((root.shape[0], num_nodes), -1, jnp.int32)
            return blank, blank

        tokens, parents = jax.lax.cond(is_asked.any(), search, none)
        tokens = jnp.where(is_asked[:, None], tokens, -1)
        return Draft(tokens=tokens, parents=parents), state

    return found._replace(propose=propose)


def trie(
    matches: Array, num_nodes: int, weights: Array | None = None
) -> tuple[Array, Array]:
    """Tokens and parents int32 [N] of the most frequent prefixes of `matches` [M, T].

    A prefix stands before those that extend it, for it is as frequent and shorter. A
    match counts `weights` (int32 [M]) times; None: once.
    """
    num_matches, length = matches.shape
    same = (matches[:, None] == matches[None]) & (matches >= 0)[:, None]
    same = jnp.cumprod(same, 2)  # [M, M, T]  equal up to here
    first = jnp.argmax(same, 1).astype(jnp.int32)  # [M, T]  who stands for it
    depth = jnp.arange(length, dtype=jnp.int32)[None]
    is_own = (first == jnp.arange(num_matches)[:, None]) & (matches >= 0)
    count = same.sum(1) if weights is None else jnp.einsum("kmt,k->mt", same, weights)
    score = jnp.where(is_own & (count > 0), count * length - depth, -1)
    best, chosen = jax.lax.top_k(score.reshape(-1), num_nodes)
    by_depth = jnp.argsort(jnp.where(best > 0, chosen % length, length), stable=True)
    chosen = jnp.where(best > 0, chosen, -1)[by_depth]
    row, deep = jnp.maximum(chosen, 0) // length, chosen % length
    above = first[row, jnp.maximum(deep - 1, 0)] * length + deep - 1
    parent = jnp.argmax(chosen[None] == above[:, None], 1).astype(jnp.int32)
    tokens = jnp.where(chosen >= 0, matches[row, deep], -1)
    return tokens, jnp.where((chosen >= 0) & (deep > 0), parent, -1)


def _first(texts: Texts, end: Array, size, is_after: bool) -> Array:
    """The first place in order whose last `size` tokens are not below `end`.

    `is_after`: the first that is above it.
    """
    num_places = texts.order.shape[0]

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        below = _is_below(texts, end, jnp.minimum(middle, num_places - 1), size)
        goes_on = below[1] if is_after else below[0]
        goes_on &= low < high
        low = jnp.where(goes_on, middle + 1, low)
        return low, jnp.where(goes_on | (low >= high), high, middle)

    none = jnp.zeros((), jnp.int32)
    bounds = none, none + num_places
    return jax.lax.fori_loop(0, num_places.bit_length() + 1, halve, bounds)[0]


def _before(texts: Texts, k: Array, size: int) -> Array:
    """The tokens int32 [size] before place number k, the nearest first."""
    place = texts.order[k] - 1 - jnp.arange(size, dtype=jnp.int32)
    return jnp.where(place >= 0, texts.tokens[jnp.maximum(place, 0)], BEFORE)


def _is_below(texts: Texts, end: Array, k: Array, size) -> tuple[Array, Array]:
    """Whether the `size` tokens before place number k are below `end`, or at most."""
    mine = _before(texts, k, end.shape[0])
    differs = (mine != end) & (jnp.arange(end.shape[0]) < size)
    first = jnp.argmax(differs)
    is_less = differs.any() & (mine[first] < end[first])
    return is_less, is_less | ~differs.any()


def _agreed(texts: Texts, end: Array, k: Array) -> Array:
    """How many tokens before place number k agree with `end`."""
    mine = _before(texts, jnp.clip(k, 0, texts.order.shape[0] - 1), end.shape[0])
    return jnp.cumprod(mine == end).sum(dtype=jnp.int32)
