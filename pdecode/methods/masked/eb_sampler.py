"""EB-Sampler: commit as many positions as a bound on their dependence allows.

Ben-Hamu et al., 2025, arXiv:2505.24857. The error of filling a set at once is at most
sum(H) - max(H); the longest prefix of the order under `gamma` nats is filled.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, windows


def eb_sampler(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    gamma: Annotated[float, Knob(0, 1e6)] = 0.1,
    order: Literal["low_confidence", "entropy", "margin", "max_prob"] = "entropy",
    cache: Literal["none", "prefix", "dual"] = "none",
    temperature: Temperature = 0.0,
) -> Decoder:
    """Entropy-bounded unmasking, of the canvas or of the next block.

    Set block decoding is this with the exact cache of a block-causal model: a block is
    stored by the call that begins the next one. In other models a cache is Fast-dLLM's.
    Guarantee: lossy with a bound: each step adds at most `gamma` nats of divergence
    from the model's own joint at temperature 1; exact at gamma=0 up to certain tokens.
    A cache adds an error of its own unless the model is block-causal.
    Cost: as many calls of the whole canvas as the bound needs, at most one a token.
    """
    grid = blocks.of(model, block_length)
    window, refresh = windows.cached(model, grid, cache)
    return masked.masked_diffusion(
        model,
        commit.entropy_bounded(gamma, commit.order(order)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=grid,
        window=window,
        refresh=refresh,
    )
