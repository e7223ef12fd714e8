"""What one call of the masked family evaluates, and when the canvas is recomputed.

A window is a function (blocks, shape) -> Window; `shape` is static.
"""

import jax.numpy as jnp

from pdecode.contracts import Blocks, CanvasShape, Lanes, Refresh, Row, Window


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


def shadowed(blocks: Blocks, shape: CanvasShape) -> Window:
    """The whole canvas, and a probe at every position of the active block.

    Text does not see the probes. A probe sees everything but the text at its own
    position (in one layer; in deeper ones the other lanes carry some of it).
    """
    block = active_block(blocks, shape)
    length = shape.length

    def apply(row: Row) -> Lanes:
        place = jnp.arange(length, dtype=jnp.int32)
        twin = block.apply(row)
        positions = jnp.concatenate([place, twin.positions])
        is_probe = jnp.arange(length + block.width) >= length
        is_twin = positions[:, None] == positions[None]
        among = jnp.where(is_probe[:, None], ~is_twin | is_probe[None], ~is_probe[None])
        valid = jnp.concatenate([jnp.ones(length, bool), twin.valid])
        return Lanes(positions, valid, is_probe, among)

    return Window(length + block.width, apply)


# The whole canvas on the first step of every block.
at_block_start = Refresh(lambda row: row.step == 0)
