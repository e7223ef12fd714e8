"""dKV-Cache: a token's keys and values are kept one step after it was committed.

Ma et al., 2025, arXiv:2505.15781. A token changes most in the step that commits it, so
its own K/V are computed in the next one and then kept. The whole canvas is computed
anew every `cache_steps` steps.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, windows


def dkv_cache(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    cache_steps: Annotated[int, Knob(1, 2**31 - 1)] = 8,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's quota over a delayed cache.

    Guarantee: lossy in the cache and above one token a step; `cache_steps` 1 is LLaDA.
    Cost: `steps` calls; a cached one asks for what is open or was just filled.
    """
    grid = blocks.of(model, block_length)
    return masked.masked_diffusion(
        model,
        commit.shared(commit.order("low_confidence"), max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        window=windows.delayed,
        refresh=windows.every(cache_steps),
    )
