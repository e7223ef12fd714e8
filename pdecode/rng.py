"""Noise as a place: every draw is a pure function of (key, row, purpose, place).

Nothing is keyed by batch slot, window offset, shard or call order, so a row's draws do
not depend on its company, and two decoders that predict the same position draw the same
target sample. Noise over the vocabulary comes in tiles of one fixed size, so it does
not depend on padding or on how a kernel cuts the vocabulary.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "VOCAB_TILE",
    "at",
    "gumbel",
    "gumbel_tile",
    "key",
    "noise",
    "row_keys",
    "row_noise",
    "uniform",
]

# What a draw is for. Two draws at one place with different purposes are independent.
TARGET, DRAFT, ACCEPT, RESIDUAL, COMMIT, REMASK, EDIT, TRANSPORT = range(8)

VOCAB_TILE = 32


def key(seed: Any) -> Array:
    """The key of a whole number in [0, 2**64); no two of them share one.

    `jax.random.key` looks at the low 32 bits only. Raises ValueError for other seeds.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise ValueError(f"seed={seed!r} must be a whole number")
    number = operator.index(seed)
    if not 0 <= number < 2**64:
        raise ValueError(f"seed={number} must lie in [0, 2**64)")
    high, low = number >> 32, number & 0xFFFFFFFF
    made = jax.random.key(low)
    return jax.random.fold_in(made, high) if high else made


def row_keys(key: Array, row_ids: Array) -> Array:
    """Keys [B] of the rows named `row_ids` (int32 [B]); constant over a decode."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)


def noise(
    keys: Array,
    purpose: int,
    positions: Array,
    *,
    round: Array | None = None,
    index: Array | None = None,
) -> Array:
    """Keys [B, Q] for draws at `positions` (int32 [B, Q]).

    `keys` [B] come from `row_keys`; `round` (int32 [B]) separates turns that visit the
    same position, `index` (int32 [B, Q]) separates nodes that share one.
    """
    row = _fold_rows(jax.vmap(jax.random.fold_in, (0, None))(keys, purpose), round)
    found = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(row, positions)
    if index is not None:
        found = jax.vmap(jax.vmap(jax.random.fold_in))(found, index)
    return found


def row_noise(keys: Array, purpose: int, round: Array | None = None) -> Array:
    """One key a row [B], for draws that belong to no position."""
    return _fold_rows(jax.vmap(jax.random.fold_in, (0, None))(keys, purpose), round)


def at(key: Array, positions: Array) -> Array:
    """Keys [W] of one row's `positions` (int32 [W]); what rules use."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def uniform(keys: Array) -> Array:
    """One float32 uniform in [0, 1) for each key, any leading shape."""
    return _each(lambda key: jax.random.uniform(key), keys)


def gumbel(keys: Array, vocab_size: int) -> Array:
    """Gumbel noise [..., V] for keys [...], float32, drawn tile by tile."""
    num_tiles = -(-vocab_size // VOCAB_TILE)

    def draw(key: Array) -> Array:
        tiles = at(key, jnp.arange(num_tiles, dtype=jnp.int32))
        drawn = jax.vmap(gumbel_tile)(tiles)
        return drawn.reshape(-1)[:vocab_size]

    return _each(draw, keys)


def gumbel_tile(key: Array) -> Array:
    """The noise [VOCAB_TILE] of one tile, given `at(key, tile_index)`."""
    # mode "low" tops out near 16, so outcomes below 1e-7 would never win.
    return jax.random.gumbel(key, (VOCAB_TILE,), jnp.float32, mode="high")


def _fold_rows(keys: Array, data: Array | None) -> Array:
    if data is None:
        return keys
    return jax.vmap(jax.random.fold_in)(keys, data)


def _each(draw, keys: Array) -> Array:
    flat = jax.vmap(draw)(keys.reshape(-1))
    return flat.reshape(*keys.shape, *flat.shape[1:])
