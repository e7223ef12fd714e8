"""ASS: 1, 2, 4, ... positions a step, so that the calls grow with log2 of the length.

Yang et al., 2025, arXiv:2509.23924 (ascending step-size scheduler), with its EOS early
rejection. With several blocks the first holds the small steps, the others are one each.
"""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Blocks, Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def ascending_steps(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    num_blocks: Count = 1,
    g_min: Annotated[float, Knob(1e-6, 1)] = 1.0,
    g_max: Annotated[float, Knob(1e-6, 1)] = 1.0,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Twice as many positions as in the step before, most confident first.

    `g_min` below `g_max` keeps EOS back in early steps; the authors' are 0.01 and 1.
    Guarantee: lossy.
    Cost: floor(log2(max_new_tokens)) calls of the whole canvas.
    """
    sizes = block_sizes(max_new_tokens, num_blocks)
    num_steps = max(max_new_tokens.bit_length() - 1, 1)

    def factor(row: Row):
        share = (2.0 ** (row.turn + 1) - 1) / 2.0**num_steps
        return g_min + (g_max - g_min) * jnp.minimum(share, 1)

    by = commit.damped(model.eos_ids, factor)

    def apply(key, row: Row, prediction):
        num_open, ladder = row.open.sum(), 2 ** jnp.minimum(row.step, 30)
        # With one block the ladder ends at floor(log2) of the row's own length.
        is_whole = num_open <= 3 * ladder if num_blocks == 1 else row.block > 0
        count = jnp.where(is_whole, num_open, ladder)
        return commit.best(by.score(key, row, prediction), row.open, count)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply, by.wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=blocks.canvas() if num_blocks == 1 else _uneven(sizes),
    )


def block_sizes(length: int, num_blocks: int) -> list[int]:
    """Lengths of the blocks; ValueError if there are more of them than steps."""
    num_steps = max(length.bit_length() - 1, 1)
    if num_blocks > num_steps:
        raise ValueError(f"{num_blocks=} exceeds the {num_steps} steps of {length=}")
    taken = [2**i - 1 for i in range(num_steps - num_blocks + 1, num_steps)]
    return np.diff([0, *taken, length]).tolist()


def _uneven(sizes: list[int]) -> Blocks:
    """Blocks of these lengths, counted from the end of each row's prompt."""

    def index(positions: Array, row: Row) -> Array:
        edges = jnp.asarray(np.cumsum(sizes)[:-1]) + row.prompt_end
        return (positions[:, None] >= edges[None]).sum(1, dtype=jnp.int32)

    def active(row: Row) -> Array:
        return index(jnp.arange(row.masked.shape[0]), row) == row.block

    return Blocks(index, active, lambda row: row.start, None)
