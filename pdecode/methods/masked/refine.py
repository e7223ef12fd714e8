"""Refining decode: committed tokens are rewritten by what the model now prefers.

ReDiff, Ji et al., 2025, arXiv:2510.19871. For models trained to correct themselves: one
that copies what it sees never changes it.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def refine(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    revise_start: Annotated[int, Knob(0, 2**31 - 1)] = 0,
    revise_fraction: Annotated[float, Knob(0, 1)] = 1.0,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's quota; from step `revise_start` of a block on, its tokens are rewritten.

    Only the `revise_fraction` of them that the model now finds least likely.
    Guarantee: lossy; fraction 0 is LLaDA.
    Cost: `steps` calls of the whole canvas.
    """
    grid = blocks.of(model, block_length)

    def apply(params, key, row: Row, prediction, memory):
        del params, key
        filled = (row.generated & ~row.masked)[row.positions] & ~row.open
        filled &= row.block_of == row.block
        count = jnp.ceil(revise_fraction * filled.sum()).astype(jnp.int32)
        worst = commit.best(-prediction.of_log_prob, filled, count)
        return worst & (row.step >= revise_start), memory

    return masked.masked_diffusion(
        model,
        commit.shared(commit.order("low_confidence"), max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        edit=Rule(lambda length: (), apply, ("of_log_prob",)),
    )
