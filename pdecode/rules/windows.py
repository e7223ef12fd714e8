"""What one call of the masked family evaluates, and when the canvas is recomputed.

A window is a function (blocks, shape) -> Window; `shape` is static.
"""

import jax.numpy as jnp

from pdecode.contracts import Blocks, CanvasShape, Lanes, Row, Window


def canvas(blocks: Blocks, shape: CanvasShape) -> Window:
    """The whole canvas: no cache is reused between steps."""
    del blocks
    length = shape.length

    def apply(row: Row) -> Lanes:
        del row
        return Lanes(jnp.arange(length, dtype=jnp.int32), jnp.ones(length, bool))

    return Window(length, apply, is_run=True)


def active_block(blocks: Blocks, shape: CanvasShape) -> Window:
    """The active block; what lies outside keeps its K/V (Fast-dLLM's dual cache).

    With holes in the prompt the first block may reach across it: the call is then as
    wide as the canvas, though no more is asked of it.
    """
    if blocks.length is None:
        raise ValueError("a window of one block needs blocks: set block_length")
    spans_prompt = shape.has_holes and not blocks.is_absolute
    width = shape.length if spans_prompt else min(blocks.length, shape.length)

    def apply(row: Row) -> Lanes:
        first = 0 if spans_prompt else blocks.first(row)
        positions = first + jnp.arange(width, dtype=jnp.int32)
        is_here = blocks.index(positions, row) == row.block
        return Lanes(positions, is_here & (positions >= blocks.first(row)))

    return Window(width, apply, is_run=True)


def from_block_on(blocks: Blocks, shape: CanvasShape) -> Window:
    """The active block and all behind it (Fast-dLLM's prefix cache)."""
    width = shape.length if shape.has_holes else min(shape.max_open, shape.length)

    def apply(row: Row) -> Lanes:
        first = 0 if shape.has_holes else blocks.first(row)
        positions = first + jnp.arange(width, dtype=jnp.int32)
        return Lanes(positions, positions >= blocks.first(row))

    return Window(width, apply, is_run=True)


def at_block_start(row: Row):
    """Refresh rule: the whole canvas on the first step of every block."""
    return row.step == 0
