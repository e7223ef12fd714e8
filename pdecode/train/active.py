"""One block of a row at a time, as decoders fill them.

What stands before the block is told, what comes after it is not.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.models.config import Config


def length_of(model: Config, block_length: int | None) -> int | None:
    """Of the blocks of a run; ValueError where its model decodes other ones."""
    if model.attention != "block_causal":
        return block_length
    if block_length not in (None, model.block_len):
        raise ValueError(
            f"block_length={block_length}, but a block-causal model decodes its own "
            f"blocks: set block_length=None or model.block_len={model.block_len}"
        )
    return model.block_len


def numbers(answer: Array, block_length: int | None, is_absolute: bool) -> Array:
    """The block of each place of `answer` bool [B, L], int32 [B, L]; -1: of none.

    Blocks are counted from the first place of the answer, or from 0 where
    `is_absolute`; None: the answer is one block.
    """
    place = jnp.arange(answer.shape[1], dtype=jnp.int32)[None]
    origin = jnp.argmax(answer, axis=1, keepdims=True).astype(jnp.int32)
    origin = jnp.zeros_like(origin) if is_absolute else origin
    size = answer.shape[1] if block_length is None else block_length
    return jnp.where(answer, (place - origin) // size, -1)


def drawn(number: Array, filler: Array, key: Array) -> Array:
    """A block of each row, int32 [B], among those with more in them than `filler`.

    `filler` bool [B, L]: what stands behind the end of a text. A row of nothing else
    gets one of its blocks.
    """
    blocks = jnp.arange(number.shape[1] + 1, dtype=jnp.int32)[None, :, None]
    inside = number[:, None] == blocks
    is_there = inside.any(-1)
    is_full = (inside & ~filler[:, None]).any(-1)
    allowed = jnp.where(is_full.any(1, keepdims=True), is_full, is_there)
    draw = jax.random.uniform(key, allowed.shape)
    return jnp.argmax(jnp.where(allowed, draw, -1.0), axis=1).astype(jnp.int32)


def behind_end(tokens: Array, answer: Array, eos_ids: tuple[int, ...]) -> Array:
    """bool [B, L]: places of the answer behind its first EOS."""
    if not eos_ids:
        return jnp.zeros(tokens.shape, bool)
    is_end = jnp.isin(tokens, jnp.asarray(eos_ids)) & answer
    return answer & (jnp.cumsum(is_end, axis=1) > is_end)
