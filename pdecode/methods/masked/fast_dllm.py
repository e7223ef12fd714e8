"""Fast-dLLM: confidence-threshold commits over blocks with a cache kept per block.

Wu et al., 2025, arXiv:2505.22618 (sections 3.2 and 3.3). "prefix" keeps the keys and
values of what lies before the block, "dual" of everything outside it; both are
recomputed on the first step of each block. A block-causal model has one exact cache,
for which only the block that was finished is computed again. With neither `threshold`
nor `factor` the quota of LLaDA applies. The factor rule is the paper's: stop at the
first failure.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, windows


def fast_dllm(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    threshold: Annotated[float, Knob(0, 1)] | None = None,
    factor: Annotated[float, Knob(0, 1e6)] | None = None,
    cache: Literal["none", "prefix", "dual"] = "none",
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit every position that is confident enough, at least one.

    The paper's threshold is 0.9, its blocks have 32 positions; a block-causal model is
    decoded in its own.
    Guarantee: lossy, in `threshold` or `factor`, and in the cache unless the model is
    block-causal.
    Cost: between one call a block and one a token; window calls are narrower.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)
    grid = blocks.of(model, block_length)
    if threshold is not None and factor is not None:
        raise ValueError("threshold and factor are two rules: set one of them")
    if threshold is not None:
        rule = commit.threshold(threshold)
    elif factor is not None:
        rule = commit.factor(factor)
    else:
        by = commit.order("low_confidence")
        rule = commit.shared(by, max_new_tokens, steps, grid)
    window, refresh = windows.cached(model, grid, cache)
    return masked.masked_diffusion(
        model,
        rule,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        window=window,
        refresh=refresh,
    )
