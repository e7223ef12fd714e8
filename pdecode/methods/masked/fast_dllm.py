"""Fast-dLLM: confidence-threshold commits over blocks with a cache kept per block.

Wu et al., 2025, arXiv:2505.22618 (sections 3.2 and 3.3). "prefix" keeps the keys and
values of what lies before the block, "dual" of everything outside it; both are
recomputed on the first step of each block. With neither `threshold` nor `factor` the
quota of LLaDA applies. The factor rule is the paper's: stop at the first failure.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Model, Sampling
from pdecode.families import masked
from pdecode.knobs import Knob, Size
from pdecode.rules import commit, windows


def fast_dllm(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    steps: Annotated[int, Size()] | None = None,
    block_length: Annotated[int, Size()] = 32,
    threshold: Annotated[float, Knob(0, 1)] | None = None,
    factor: Annotated[float, Knob(0, 1e6)] | None = None,
    cache: Literal["none", "prefix", "dual"] = "none",
    temperature: Annotated[float, Knob(0, 100)] = 0.0,
) -> Decoder:
    """Commit every position that is confident enough, at least one.

    The paper's threshold is 0.9. Guarantee: lossy, in `threshold` or `factor`, and in
    the cache unless the model is block-causal with this block length.
    Cost: between one call a block and one a token; window calls are narrower.
    """
    block = min(block_length, max_new_tokens)
    if threshold is not None and factor is not None:
        raise ValueError("threshold and factor are two rules: set one of them")
    if threshold is not None:
        rule = commit.threshold(threshold)
    elif factor is not None:
        rule = commit.factor(factor)
    else:
        share = masked.steps_per_block(max_new_tokens, steps, block)
        rule = commit.quota(commit.order("low_confidence"), share)
    window = {
        "none": windows.canvas,
        "prefix": windows.from_block_on(block, max_new_tokens),
        "dual": windows.active_block(block),
    }[cache]
    return masked.masked_diffusion(
        model,
        rule,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        block_length=block,
        window=window,
        refresh=None if cache == "none" else windows.at_block_start,
    )
