"""What one call of the masked family evaluates, and when the canvas is recomputed.

A window is a function (blocks, shape) -> Window; `shape` is static.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Blocks, CanvasShape, Lanes, Model, Refresh, Row, Window
from pdecode.rules import commit

__all__ = [
    "active_block",
    "at_block_start",
    "cached",
    "canvas",
    "delayed",
    "every",
    "finished",
    "from_block_on",
    "important",
    "open_blocks",
    "shadowed",
    "unit",
]


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
    length = _length(blocks)
    spans_prompt = shape.has_holes and not blocks.is_absolute
    width = shape.length if spans_prompt else min(length, shape.length)

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


def open_blocks(most: int) -> Callable[[Blocks, CanvasShape], Window]:
    """The blocks that may be filled, of which there are at most `most`."""

    def window(blocks: Blocks, shape: CanvasShape) -> Window:
        if shape.has_holes:
            return canvas(blocks, shape)
        width = min(most * _length(blocks), shape.length)

        def apply(row: Row) -> Lanes:
            first = blocks.first(row)
            positions = first + jnp.arange(width, dtype=jnp.int32)
            return Lanes(positions, blocks.active(row).at[positions].get(mode="fill"))

        return Window(width, apply, is_run=True)

    return window


def unit(blocks: Blocks, shape: CanvasShape) -> Window:
    """The block of a block-causal model that the active block is part of."""
    if shape.has_holes:
        return canvas(blocks, shape)
    size = blocks.whole or _length(blocks)
    width = min(size, shape.length)

    def apply(row: Row) -> Lanes:
        first = blocks.first(row) // size * size
        positions = first + jnp.arange(width, dtype=jnp.int32)
        return Lanes(positions, positions < first + size)

    return Window(width, apply, is_run=True)


def delayed(blocks: Blocks, shape: CanvasShape) -> Window:
    """What is open, and what the step before filled: a token is stored once it is seen.

    The step that fills a position evaluates it as a mask; its own K/V come a step
    later, and then stay (dKV-Cache). The text of the prompt stays from the beginning.
    """
    width = shape.length if shape.has_holes else min(shape.max_open, shape.length)

    def apply(row: Row) -> Lanes:
        first = 0 if shape.has_holes else row.start
        positions = first + jnp.arange(width, dtype=jnp.int32)
        moving = row.masked | row.fresh
        return Lanes(positions, moving.at[positions].get(mode="fill", fill_value=False))

    return Window(width, apply, is_run=True)


def important(
    score: Callable[[Row], Array],
    num_next: int,
    num_fresh: int,
    num_carriers: int,
    share: Array | float,
):
    """What may be filled next, what was just filled, and what attention takes from.

    The first are the `num_next` open positions of highest `score(row)` [L] in [0, 1],
    those of the active block before others, in the blocks that hold the first
    `num_next`. The last are those of the rest that most was taken from
    (`Row.observed`), together at most `share` of what is taken from the rest, at least
    one and at most `num_carriers`. Where a step fills more than `num_fresh`, the others
    have less room (d2Cache).
    """

    def window(blocks: Blocks, shape: CanvasShape) -> Window:
        width = min(num_next + num_fresh + num_carriers, shape.length)
        place = jnp.arange(shape.length, dtype=jnp.int32)

        def apply(row: Row) -> Lanes:
            block = blocks.index(place, row)
            first = row.masked & (jnp.cumsum(row.masked) <= num_next)
            far = jnp.where(first, block, -1).max()
            near = row.masked & (block <= far)
            likely = score(row) + 2.0 * (block == row.block)
            next_ = commit.best(likely, near, num_next)
            rest = ~(next_ | row.fresh) & (place < row.end)
            taken = jnp.where(rest, row.observed[:, 0], 0)
            rank = commit.ranks(taken, rest)
            falling = jnp.argsort(rank)
            summed = jnp.cumsum(taken[falling])[rank]
            is_within = (rank == 0) | (summed <= jnp.maximum(share * summed.max(), 0))
            carries = rest & (rank < num_carriers) & is_within
            asked = next_ | row.fresh | carries
            asked = commit.best(2.0 * row.fresh + next_, asked, width)
            positions = jnp.sort(jnp.where(asked, place, shape.length))[:width]
            return Lanes(positions, positions < shape.length)

        return Window(width, apply)

    return window


# The whole canvas on the first step of every block.
at_block_start = Refresh(lambda row: row.step == 0)


def every(steps: Array | int) -> Refresh:
    """The whole canvas on every `steps`-th step of a row, the first one included."""
    return Refresh(lambda row: row.turn % steps == 0)


def finished(blocks: Blocks, most: int = 1, *, is_inner: bool = False) -> Refresh:
    """What an exact cache of a block-causal model needs, `most` blocks being open.

    The prompt is stored before the first step. When the first open block moves on, the
    blocks that were open before it are stored once more, with their last tokens, in the
    call that begins the new ones. `is_inner`: a decode block is a part of the model's,
    which is stored anew whenever a part begins, until the part's first position is
    filled, and once more where that is the block's first. A prompt with holes is stored
    whole each time.
    """
    size = blocks.whole or _length(blocks)

    def when(row: Row):
        first = blocks.first(row)
        if not is_inner:
            return (row.step == 0) & (first % size == 0)
        is_late = row.fresh[first] & (first % size == 0)
        return (row.step == 0) | row.masked[first] | is_late

    def window(blocks: Blocks, shape: CanvasShape) -> Window:
        if shape.has_holes:
            return canvas(blocks, shape)
        width = min(2 * most * size, shape.length)

        def apply(row: Row) -> Lanes:
            here = blocks.first(row) // size * size
            first = jnp.maximum(here - most * size, 0)
            positions = first + jnp.arange(width, dtype=jnp.int32)
            is_behind = (positions < here) & (blocks.first(row) == here)
            is_behind &= (row.step == 0) & (row.turn > 0)
            is_now = (positions >= here) & (positions < here + most * size)
            return Lanes(positions, is_behind | is_now)

        return Window(width, apply, is_run=True)

    return Refresh(when, window, has_prefill=True, is_first=is_inner)


def cached(model: Model, blocks: Blocks, kind: str):
    """(window, refresh) of a cache kept for a block: "none", "prefix" or "dual".

    A block-causal model sees nothing behind the block: both kinds are its exact cache.
    """
    if kind == "none":
        return canvas, None
    if model.attention == "block_causal":
        return unit, finished(blocks)
    window = {"prefix": from_block_on, "dual": active_block}[kind]
    return window, at_block_start


def _length(blocks: Blocks) -> int:
    if blocks.length is None:
        raise ValueError("a window of blocks needs blocks: set block_length")
    return blocks.length
