"""HMAR: scale after scale, and inside a scale a few masked steps.

Kumbong et al., 2025, arXiv:2506.04421. A scale of side s has s * s positions; all are
predicted in its first step, the least likely are masked again and predicted anew.
Deviation: the model decides what a scale sees.
"""

from typing import Annotated

import jax.numpy as jnp
import numpy as np

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import blocks, commit


def hmar(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    sides: Annotated[tuple[int, ...], Size()] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    counts: Annotated[tuple[int, ...], Size()] = (
        1,
        1,
        3,
        1,
        1,
        2,
        5,
        16,
        25,
        36,
        64,
        100,
        169,
        256,
    ),
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`counts` are the positions that the calls keep, one after another.

    A scale of one call is plain next-scale prediction. ValueError if the scales do not
    make up `max_new_tokens`, or the calls not each scale.
    Guarantee: lossy; positions of one step are drawn independently.
    Cost: as many calls of the whole canvas as there are `counts`.
    """  # fmt: skip
    sizes = tuple(side * side for side in sides)
    if sum(sizes) != max_new_tokens:
        raise ValueError(
            f"sides={sides} have {sum(sizes)} positions, but {max_new_tokens=}"
        )
    kept, ends = np.cumsum(counts), np.cumsum(sizes)
    if kept[-1] != ends[-1] or not set(ends) <= set(kept):
        raise ValueError(
            f"counts={counts} must make up each scale of {sizes} positions in turn"
        )
    table = jnp.asarray(counts, jnp.int32)
    first = jnp.asarray(np.searchsorted(kept, ends - sizes, side="right"), jnp.int32)

    def apply(key, row: Row, prediction):
        del key
        now = first[jnp.minimum(row.block, len(sides) - 1)] + row.step
        count = table[jnp.minimum(now, len(counts) - 1)]
        return commit.best(prediction.log_prob, row.open, count)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        blocks=blocks.sizes(sizes),
    )
