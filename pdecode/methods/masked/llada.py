"""LLaDA: equal shares of each block per step, most confident first.

Nie et al., 2025, arXiv:2502.09992 (algorithm 4 and the semi-autoregressive sampler).
Deviation: when a block has fewer open positions than steps, it ends early instead of
spending calls that commit nothing.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, guidance


def llada(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    order: Literal[
        "low_confidence", "random", "entropy", "margin", "max_prob", "sequential"
    ] = "low_confidence",
    temperature: Temperature = 0.0,
    cfg_scale: Annotated[float, Knob(0, 100, off=0)] | None = None,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
) -> Decoder:
    """Low-confidence remasking with a fixed quota, optionally block by block.

    Defaults: one token a step, one block. `steps` is shared equally between blocks.
    `logits_eos_inf` never draws EOS; `confidence_eos_eot_inf` measures confidence in
    the law without the EOS ids, so that they come last.
    Guarantee: lossy above one token a step; at one token a step exact for orders
    "random", "entropy", "margin", "max_prob" and "sequential", biased for
    "low_confidence".
    Cost: `steps` calls of the whole canvas, twice that with guidance.
    """
    by = commit.order(order)
    if confidence_eos_eot_inf:
        if order != "low_confidence":
            raise ValueError(f"confidence_eos_eot_inf with {order=}: leave one out")
        by = commit.confidence_without(model.eos_ids)
    grid = blocks.of(model, block_length)
    rule = commit.shared(by, max_new_tokens, steps, grid)
    if cfg_scale is not None and model.mask_id is not None:
        model = guidance.guided(model, cfg_scale, guidance.mask_prompt(model.mask_id))
    banned = model.eos_ids if logits_eos_inf else ()
    return masked.masked_diffusion(
        model,
        rule,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, banned=banned, undrawn=masked.undrawn(model)),
        blocks=grid,
    )
