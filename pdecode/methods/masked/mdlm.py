"""MDLM: ancestral sampling of the absorbing diffusion process.

Sahoo et al., 2024, arXiv:2406.07524; the same law as MD4 (arXiv:2406.04329) and
absorbing SEDD (arXiv:2310.16834). Deviation: the grid ends at time 0, where the last
step's probability is 1, so no separate fill is needed.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature, TopP
from pdecode.rules import commit, schedules


def mdlm(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 64,
    schedule: Literal["linear", "cosine", "square"] = "linear",
    temperature: Temperature = 1.0,
    top_p: TopP | None = None,
) -> Decoder:
    """Each open position is filled with probability (alpha_s - alpha_t)/(1 - alpha_t).

    Guarantee: lossy at finite `steps`, from positions filled together; exact for the
    model's own reverse process as steps grow.
    Cost: at most `steps` calls of the whole canvas.
    """
    return masked.masked_diffusion(
        model,
        commit.bernoulli(schedules.ancestral(schedule, steps).commit),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p=top_p),
        progress="schedule",
        max_steps=steps,
    )
