"""LLaDA: equal shares of each block per step, most confident first.

Nie et al., 2025, arXiv:2502.09992 (algorithm 4 and the semi-autoregressive sampler).
Deviation: when a block has fewer open positions than steps, it ends early instead of
spending calls that commit nothing.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Model, Sampling
from pdecode.families import masked
from pdecode.knobs import Knob, Size
from pdecode.rules import commit, guidance


def llada(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    steps: Annotated[int, Size()] | None = None,
    block_length: Annotated[int, Size()] | None = None,
    order: Literal[
        "low_confidence", "random", "entropy", "margin", "max_prob"
    ] = "low_confidence",
    temperature: Annotated[float, Knob(0, 100)] = 0.0,
    cfg_scale: Annotated[float, Knob(0, 100, off=0)] | None = None,
) -> Decoder:
    """Low-confidence remasking with a fixed quota, optionally block by block.

    Defaults: one token a step, one block. `steps` is shared equally between blocks.
    Guarantee: lossy above one token a step; at one token a step exact for orders
    "random", "entropy", "margin" and "max_prob", biased for "low_confidence".
    Cost: `steps` calls of the whole canvas, twice that with guidance.
    """
    block = max_new_tokens if block_length is None else block_length
    steps_per_block = masked.steps_per_block(max_new_tokens, steps, block)
    if cfg_scale is not None and model.mask_id is not None:
        model = guidance.guided(model, cfg_scale, guidance.mask_prompt(model.mask_id))
    return masked.masked_diffusion(
        model,
        commit.quota(commit.order(order), steps_per_block),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        block_length=block,
    )
