"""EB-Sampler: commit as many positions as a bound on their dependence allows.

Ben-Hamu et al., 2025, arXiv:2505.24857. The error of filling a set at once is at most
sum(H) - max(H); the longest prefix of the order under `gamma` nats is filled.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def eb_sampler(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    gamma: Annotated[float, Knob(0, 1e6)] = 0.1,
    order: Literal["low_confidence", "entropy", "margin", "max_prob"] = "entropy",
    temperature: Temperature = 0.0,
) -> Decoder:
    """Entropy-bounded unmasking.

    Guarantee: lossy with a bound: each step adds at most `gamma` nats of divergence
    from the model's own joint at temperature 1; exact at gamma=0 up to certain tokens.
    Cost: as many calls of the whole canvas as the bound needs, at most one a token.
    """
    return masked.masked_diffusion(
        model,
        commit.entropy_bounded(gamma, commit.order(order)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.of(model, block_length),
    )
