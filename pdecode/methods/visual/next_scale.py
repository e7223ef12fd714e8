"""Next scales: all tokens of a scale in one call, from the scales before it.

Tian et al., 2024, arXiv:2404.02905 (VAR); VAT, Zhang et al., 2024, arXiv:2412.02202,
whose scales are ever more latent tokens of a shape. Deviation: a scale is asked for by
masks at its positions, where the papers feed what the coarser ones make of it; what a
scale sees of the others is the model's.
"""

from typing import Annotated

import numpy as np

from pdecode.contracts import Decoder, Sampling
from pdecode.families import frontier
from pdecode.knobs import Count, MaskedModel, Size, Temperature, TopK, TopP


def next_scale(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    scales: Annotated[tuple[int, ...], Size()] = (
        1,
        4,
        9,
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
    """`scales` tokens each, coarse to fine; the default is VAR's 680 at 256 pixels.

    `pdecode.data.scales` makes such tokens of numbers. ValueError if the scales do not
    make up `max_new_tokens`.
    Guarantee: exact at scales of one token; lossy above it, by independence within a
    scale.
    Cost: a call a scale, of its tokens and those of the scale before.
    """
    if sum(scales) != max_new_tokens:
        raise ValueError(
            f"scales={scales} have {sum(scales)} tokens, but {max_new_tokens=}"
        )
    return frontier.frontier(
        model,
        np.repeat(np.arange(len(scales)), scales),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
