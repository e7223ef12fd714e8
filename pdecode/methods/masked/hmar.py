"""HMAR: scale after scale, and inside a scale a few masked steps.

Kumbong et al., 2025, arXiv:2506.04421. A scale of side s has s * s positions; all are
predicted in its first step, the least likely are masked again and predicted anew.
Deviation: the model decides what a scale sees; equal shares stand for the authors'
lists of counts.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import blocks, commit, schedules


def hmar(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    sides: Annotated[tuple[int, ...], Size()] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    mask_steps: Annotated[tuple[int, ...], Size()] = (1, 1, 1, 2, 2, 2, 2, 2, 2, 2),
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`mask_steps[k]` calls for scale k; one is plain next-scale prediction.

    ValueError if the scales do not make up `max_new_tokens`.
    Guarantee: lossy; positions of one step are drawn independently.
    Cost: sum of `mask_steps` calls of the whole canvas.
    """
    sizes = tuple(side * side for side in sides)
    if sum(sizes) != max_new_tokens:
        raise ValueError(
            f"sides={sides} have {sum(sizes)} positions, but {max_new_tokens=}"
        )
    if len(mask_steps) != len(sides):
        raise ValueError(f"{len(mask_steps)} mask_steps for {len(sides)} scales")
    table = jnp.asarray(mask_steps, jnp.int32)

    def apply(key, row: Row, prediction):
        del key
        count = schedules.quota(row.num_initial, row.step, table[row.block])
        return commit.best(prediction.log_prob, row.open, count)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        blocks=blocks.sizes(sizes),
    )
