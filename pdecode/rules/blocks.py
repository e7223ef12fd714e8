"""Which positions of a row may be filled now: the grid that decode blocks lie on."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Blocks, Model, Row

__all__ = [
    "absolute",
    "canvas",
    "fraction",
    "generation",
    "of",
    "parts",
    "pipelined",
    "shared",
    "sizes",
]


def canvas() -> Blocks:
    """One block: everything open may be filled."""

    def index(positions: Array, row: Row) -> Array:
        del row
        return jnp.zeros_like(positions)

    return Blocks(index, _current(index), lambda row: row.start, None)


def generation(length: int) -> Blocks:
    """Blocks of `length` counted from the end of each row's prompt, filled in order.

    Holes of the prompt lie in the first block. ValueError for a length below 1.
    """
    _check(length)

    def index(positions: Array, row: Row) -> Array:
        return jnp.maximum(positions - row.prompt_end, 0) // length

    def first(row: Row) -> Array:
        # The first block reaches back to the first hole.
        begin = row.prompt_end + row.block * length
        return jnp.where(row.block == 0, row.start, begin)

    return Blocks(index, _current(index), first, length)


def sizes(lengths: Sequence[int]) -> Blocks:
    """Blocks of these lengths from the end of each row's prompt, filled in order.

    Holes of the prompt lie in the first block, what lies behind the last one in it.
    ValueError for a length below 1.
    """
    for length in lengths:
        _check(length)
    ends = jnp.asarray(np.cumsum(lengths), jnp.int32)

    def index(positions: Array, row: Row) -> Array:
        offset = positions - row.prompt_end
        return (offset[:, None] >= ends[None, :-1]).sum(1, dtype=jnp.int32)

    def first(row: Row) -> Array:
        begin = row.prompt_end + ends[jnp.maximum(row.block - 1, 0)]
        return jnp.where(row.block == 0, row.start, begin)

    return Blocks(index, _current(index), first, max(lengths))


def shared(max_new_tokens: int, steps: Sequence[int]) -> int:
    """Frames of each codebook, where one of `steps` is each codebook's (MAGNeT).

    ValueError if the codebooks do not divide the canvas.
    """
    frames, rest = divmod(max_new_tokens, len(steps))
    if rest:
        raise ValueError(
            f"{max_new_tokens=} is no multiple of the {len(steps)} codebooks in "
            f"decoding_steps={steps}"
        )
    return frames


def absolute(length: int) -> Blocks:
    """Blocks of `length` counted from position 0, filled in order.

    What block-causal models need: a prompt's tail opens the first block, and the last
    one is filled to its end. ValueError for a length below 1.
    """
    _check(length)

    def index(positions: Array, row: Row) -> Array:
        del row
        return positions // length

    return Blocks(
        index, _current(index), lambda row: row.block * length, length, is_absolute=True
    )


def parts(length: int, whole: int) -> Blocks:
    """`absolute` blocks of `length` inside a model's blocks of `whole` positions.

    ValueError if the one does not divide the other.
    """
    if whole % length:
        raise ValueError(f"parts of {length} do not divide a block of {whole}")
    return absolute(length)._replace(whole=whole)


def pipelined(blocks: Blocks, add: Array | float, most: int) -> Blocks:
    """`blocks`, the next opened as soon as the last open one is filled to `add`.

    At most `most` are open at once. At `add` = 1 they follow one another.
    """

    def active(row: Row) -> Array:
        place = jnp.arange(row.masked.shape[0], dtype=jnp.int32)
        index = blocks.index(place, row)
        enough = (fraction(blocks, row) >= add) | (place < row.block)
        # By number of the block: all before it are filled enough.
        is_open = jnp.cumprod(jnp.pad(enough, (1, 0), constant_values=True)[:-1]) > 0
        is_open &= place < row.block + most
        return is_open[index] & (index >= row.block)

    return blocks._replace(active=active)


def fraction(blocks: Blocks, row: Row) -> Array:
    """float32 [L]: what part of block 0, 1, .. is filled, of what was open in it."""
    place = jnp.arange(row.masked.shape[0], dtype=jnp.int32)
    index = blocks.index(place, row)
    total = jnp.zeros(place.shape, jnp.float32).at[index].add(row.generated)
    left = jnp.zeros(place.shape, jnp.float32).at[index].add(row.masked)
    return jnp.where(total > 0, 1 - left / jnp.maximum(total, 1), 1.0)


def of(model: Model, length: int | None) -> Blocks:
    """The grid for `model`: blocks of `length`, or one (None).

    A block-causal model decodes the blocks that it attends by: ValueError for another
    length.
    """
    if model.attention != "block_causal":
        return canvas() if length is None else generation(length)
    if model.block_len is None:
        raise ValueError(f"{model.name} is block-causal, but block_len is not set")
    if length not in (None, model.block_len):
        raise ValueError(
            f"block_length={length}, but {model.name} attends by blocks of "
            f"{model.block_len}: use that, or leave it out"
        )
    return absolute(model.block_len)


def _current(index):
    """The `active` of blocks that are filled one after another."""

    def active(row: Row) -> Array:
        place = jnp.arange(row.masked.shape[0], dtype=jnp.int32)
        return index(place, row) == row.block

    return active


def _check(length: int) -> None:
    if length < 1:
        raise ValueError(f"a block of {length} positions: it needs at least one")
