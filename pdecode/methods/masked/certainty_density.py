"""Certainty prior: what lies near known text comes first.

Jiang et al., 2025, arXiv:2509.23094 (d2Cache, the decoding beside its cache). The prior
of a position is the Gaussian-weighted share of known positions around it. What lies
left of the generation is known; what lies behind it is known once its last position is.
Deviation: the Gaussian ends at four `sigma`.
"""

from pdecode.contracts import Decoder, Sampling
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
    grid = blocks.of(model, block_length)
    return masked.masked_diffusion(
        model,
        commit.shared(commit.certain(sigma), max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
    )
