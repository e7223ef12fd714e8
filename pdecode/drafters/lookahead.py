"""Jacobi trajectories as a source of n-grams: a window of probes and a pool.

Every call also evaluates a window of guesses several Jacobi steps deep, as probes that
nothing is accepted from. A column of it is an n-gram that the target itself would
write; the pool keeps those by their first token and drafts them where that token ends
the text (Fu et al., 2024, arXiv:2402.02057).
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import rng
from pdecode.contracts import Draft, Drafter, Model, Prefix, Round

__all__ = ["LookaheadState", "Plan", "inserted", "lookahead", "packed"]


class LookaheadState(NamedTuple):
    """The window, N - 1 Jacobi steps deep, and the n-grams seen so far."""

    # int32 [B, N-1, W]  row l stands l places behind row 0, which begins at the root;
    # its first entry is not read: the root takes its place.
    window: Array
    pool: Array  # int32 [B, V, G, N-1]  what followed each token, newest last; -1: none
    age: Array  # int32 [B]  rounds since the window was random


class Plan(NamedTuple):
    """Sizes of the drafter."""

    model: Model
    level: int  # N, tokens of an n-gram, its key included
    window: int  # W
    num_guesses: int  # G

    @property
    def num_stored(self) -> int:
        """Nodes that may be accepted."""
        return self.num_guesses * (self.level - 1)

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, column) of every probe, in their order."""
        return list(itertools.product(range(self.level - 1), range(self.window)))[1:]


def lookahead(
    model: Model,
    level: int,
    window: int,
    num_guesses: int,
    *,
    is_pool_from_prompt: bool = True,
) -> Drafter:
    """Drafter of up to `num_guesses` n-grams of `level` tokens behind the root.

    Its window has `window` columns. `is_pool_from_prompt`: the pool begins with the
    prompt's own n-grams. Raises ValueError for n-grams of one token.
    """
    if level < 2:
        raise ValueError(f"{level=}: an n-gram needs a key and a token, 2 at least")
    plan = Plan(model, level, window, num_guesses)
    return Drafter(
        num_nodes=plan.num_stored + len(plan.places),
        max_depth=level - 1,
        init=functools.partial(_init, plan, is_pool_from_prompt),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
        num_probes=len(plan.places),
        wants=("top:1",),
    )


def _init(plan: Plan, is_pool_from_prompt, params, keys, prompt, prefix, output):
    del params, output
    batch, depth = prefix.length.shape[0], plan.level - 1
    place = jnp.arange(depth * plan.window, dtype=jnp.int32)
    place = jnp.broadcast_to(place, (batch, place.shape[0]))
    share = rng.uniform(rng.noise(keys, rng.DRAFT, place))
    picked = (share * prefix.length[:, None]).astype(jnp.int32)
    window = jnp.take_along_axis(prefix.tokens, picked, 1)
    shape = (batch, plan.model.vocab_size, plan.num_guesses, depth)
    pool = jnp.full(shape, -1, jnp.int32)
    width = prompt.tokens.shape[1]
    if is_pool_from_prompt and width > depth:
        first = jnp.arange(width - depth, dtype=jnp.int32)
        grams = prompt.tokens[:, first[:, None] + jnp.arange(plan.level)[None]]
        is_text = first[None] + depth < prompt.lengths[:, None]
        pool = inserted(pool, jnp.where(is_text, grams[..., 0], -1), grams[..., 1:])
    window = window.reshape(batch, depth, plan.window)
    return LookaheadState(window, pool, jnp.zeros_like(prefix.length))


def _propose(plan: Plan, params, keys, state: LookaheadState, prefix: Prefix):
    del params, keys
    batch, depth = prefix.length.shape[0], plan.level - 1
    root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)[:, 0]
    guesses = state.pool[jnp.arange(batch), root].reshape(batch, plan.num_stored)
    rows, columns = np.array(plan.places, np.int32).reshape(-1, 2).T
    tokens = jnp.concatenate([guesses, state.window[:, rows, columns]], 1)
    nodes = np.arange(plan.num_stored)
    parents = np.where(nodes % depth > 0, nodes - 1, -1)
    parents = np.concatenate([parents, np.full(len(rows), -1)])
    offsets = np.concatenate([nodes % depth + 1, rows + columns])

    def spread(table: np.ndarray) -> Array:
        return jnp.broadcast_to(jnp.asarray(table), (batch, *table.shape))

    draft = Draft(
        tokens=tokens,
        parents=spread(parents.astype(np.int32)),
        offsets=spread(offsets.astype(np.int32)),
        among=spread(packed(plan)),
    )
    return draft, state


def packed(plan: Plan) -> np.ndarray:
    """bool [N, N]: which nodes each probe sees; rows of guesses are not read.

    A probe at row l, column j stands behind row 0 up to its column, which is a causal
    text, and behind its own column in the rows between.
    """
    size = plan.num_stored + len(plan.places)
    seen = np.zeros((size, size), bool)
    for query, (row, column) in enumerate(plan.places, plan.num_stored):
        for key, (other, place) in enumerate(plan.places, plan.num_stored):
            is_text = other == 0 and place <= column
            is_step = place == column and 0 < other <= row
            seen[query, key] = is_text or is_step
    return seen


def _observe(plan: Plan, params, keys, state: LookaheadState, round: Round):
    del params, keys
    prefix, depth = round.prefix, plan.level - 1
    root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
    # Lanes of the newest row; that of row 0, column 0 is the root's.
    newest = np.arange(plan.window) + (depth - 1) * plan.window
    newest = np.where(newest > 0, newest + plan.num_stored, 0)
    new = round.prediction.top_ids[:, newest, 0]
    first = jnp.concatenate([root, state.window[:, 0, 1:]], 1)
    grams = jnp.concatenate([state.window[:, 1:], new[:, None]], 1)  # [B, N-1, W]
    # Until every row is the target's own, columns are not n-grams of its text.
    is_ripe = (state.age >= depth - 1)[:, None]
    pool = inserted(state.pool, jnp.where(is_ripe, first, -1), grams.swapaxes(1, 2))
    # One place forward: what stood l + 1 behind the old root stands l behind the next.
    return LookaheadState(grams, pool, state.age + 1)


def inserted(pool: Array, keys: Array, grams: Array) -> Array:
    """`pool` [B, V, G, M] with `grams` [B, K, M] under `keys` [B, K], in order.

    A gram that is there becomes the newest; else the oldest goes. Keys below zero
    insert nothing.
    """
    batch, vocab, size = pool.shape[:3]
    row, slot = jnp.arange(batch), jnp.arange(size)[None]

    def insert(k, pool):
        key, gram = keys[:, k], grams[:, k][:, None]  # [B, 1, M]
        kept = pool[row, jnp.maximum(key, 0)]  # [B, G, M]
        is_same = (kept == gram).all(-1)
        gone = jnp.where(is_same.any(1), jnp.argmax(is_same, 1), 0)
        later = jnp.concatenate([kept[:, 1:], gram], 1)
        kept = jnp.where((slot >= gone[:, None])[..., None], later, kept)
        return pool.at[row, jnp.where(key >= 0, key, vocab)].set(kept, mode="drop")

    return jax.lax.fori_loop(0, keys.shape[1], insert, pool)
