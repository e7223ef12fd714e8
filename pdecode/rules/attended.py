"""Scores of positions by what attention tells of them (`Row.observed`)."""

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Row

__all__ = ["contrast"]


def contrast(row: Row, shape: tuple[int, int]) -> Array:
    """[H * W] in [0, 1]: how far the largest map is above the others, by position.

    The grid of `shape` (H, W) begins where the prompt ends. A map is a column of what
    is observed, smoothed (1, 2, 1 over rows and columns) and stretched to [0, 1] over
    the row's own positions (UNCAGE).
    """
    place = row.prompt_end + jnp.arange(shape[0] * shape[1])
    inside = (place < row.end)[:, None]
    maps = row.observed.at[place].get(mode="fill", fill_value=0)
    maps = _blurred(jnp.where(inside, maps, 0), shape)
    maps /= jnp.maximum(_blurred(inside.astype(jnp.float32), shape), 1e-9)
    low = jnp.min(maps, 0, keepdims=True, where=inside, initial=jnp.inf)
    high = jnp.max(maps, 0, keepdims=True, where=inside, initial=0)
    maps = jnp.where(inside, (maps - low) / jnp.maximum(high - low, 1e-9), 0)
    two = jnp.sort(jnp.pad(maps, ((0, 0), (1, 0))), -1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _blurred(maps: Array, shape: tuple[int, int]) -> Array:
    """[N, C] times 1, 2, 1 over rows and over columns."""
    grid = maps.reshape(*shape, -1)
    for axis in (0, 1):
        wide = jnp.pad(grid, [(1, 1) if each == axis else (0, 0) for each in range(3)])
        at = [jnp.take(wide, jnp.arange(shape[axis]) + k, axis) for k in range(3)]
        grid = at[0] + 2 * at[1] + at[2]
    return grid.reshape(maps.shape)
