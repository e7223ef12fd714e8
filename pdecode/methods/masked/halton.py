"""Halton order on a canvas: what is filled together lies far apart.

The scheduler of Besnier et al. (2025), Halton-MaskGIT: no confidence decides, only the
two-dimensional Halton sequence, cut into groups that leave arccos shares masked.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature, TopK, TopP
from pdecode.rules import commit, orders


def halton(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 32,
    row_length: Count | None = None,
    group_sizes: Literal["arccos", "cosine"] = "arccos",
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`steps` groups of a grid of `row_length` columns, None: one row.

    Guarantee: exact at one position a step; lossy above it, by independence within a
    group.
    Cost: `steps` calls of the whole canvas.
    """
    steps = min(steps, max_new_tokens)
    rank = orders.cut(
        orders.of("halton", max_new_tokens, row_length),
        orders.masked_sizes(max_new_tokens, steps, group_sizes),
    )
    return masked.masked_diffusion(
        model,
        commit.by_rank(rank),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
