"""Certainty prior: what lies near known text comes first.

Jiang et al., 2025, arXiv:2509.23094 (d2Cache, the decoding beside its cache). The prior
of a position is the Gaussian-weighted share of known positions around it. What lies
left of the generation is known; what lies behind it is known once its last position is.
Deviation: the Gaussian ends at four `sigma`.
"""

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def certainty_density(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    sigma: Count = 10,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's sampler, best first by confidence times the certainty around.

    Guarantee: lossy, and biased even at one token a step, as its order looks at the
    tokens drawn.
    Cost: `steps` calls of the whole canvas.
    """

    def score(key, row: Row, prediction) -> Array:
        del key
        return jnp.exp(prediction.log_prob) * density(row, sigma)[row.positions]

    grid = blocks.of(model, block_length)
    by = commit.Order(score, (), False)
    return masked.masked_diffusion(
        model,
        commit.shared(by, max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
    )


def density(row: Row, sigma: int) -> Array:
    """[L]: the share of known positions around each."""
    length, reach = row.masked.shape[0], 4 * sigma
    last = ~row.masked[jnp.maximum(row.end - 1, 0)]
    place = jnp.arange(-reach, length + reach)
    inside = (place >= 0) & (place < row.end)
    here = ~row.masked[jnp.clip(place, 0, length - 1)]
    known = jnp.where(inside, here, (place < 0) | last).astype(jnp.float32)
    kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
    return jnp.convolve(known, kernel, mode="valid") / kernel.sum()
