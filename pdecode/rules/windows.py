"""What one call of the masked family evaluates, and when the canvas is recomputed."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Row, Window


def canvas(length: int) -> Window:
    """The whole canvas: no cache is reused between steps."""

    def apply(row: Row) -> tuple[Array, Array]:
        del row
        return jnp.arange(length, dtype=jnp.int32), jnp.ones(length, bool)

    return Window(length, apply, is_run=True)


def active_block(block_length: int) -> Callable[[int], Window]:
    """The active block; what lies outside keeps its K/V (Fast-dLLM's dual cache)."""

    def make(length: int) -> Window:
        width = min(block_length, length)

        def apply(row: Row) -> tuple[Array, Array]:
            first = row.start + row.block * block_length
            positions = first + jnp.arange(width, dtype=jnp.int32)
            return positions, positions < row.end

        return Window(width, apply, is_run=width < length)

    return make


def from_block_on(block_length: int, max_open: int) -> Callable[[int], Window]:
    """The active block and all behind it (Fast-dLLM's prefix cache).

    `max_open` bounds the distance from a row's first open position to its end.
    """

    def make(length: int) -> Window:
        width = min(max_open, length)

        def apply(row: Row) -> tuple[Array, Array]:
            first = row.start + row.block * block_length
            positions = first + jnp.arange(width, dtype=jnp.int32)
            return positions, positions < row.end

        return Window(width, apply, is_run=width < length)

    return make


def at_block_start(row: Row) -> Array:
    """Refresh rule: the whole canvas on the first step of every block."""
    return row.step == 0
