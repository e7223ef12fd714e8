"""Pipelined blocks: the next block begins before the last one is full.

D2F, Wang et al., 2025, arXiv:2508.09192; d3LLM, Qian et al., 2026, arXiv:2601.07568. A
block is opened when the one before it is filled to `block_add_threshold`, and counts as
active when that one is filled to `decoded_token_threshold`. Every open block commits
what is sure; `forced` ones also their best where nothing is. Deviation: at most
`max_blocks` are open at once, which fixes the width of a cached call.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, windows


def d2f(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    rule: Literal["confidence", "entropy"] = "confidence",
    threshold: Annotated[float, Knob(0, 100)] = 0.9,
    block_add_threshold: Annotated[float, Knob(0, 1)] = 0.1,
    decoded_token_threshold: Annotated[float, Knob(0, 1)] = 0.95,
    forced: Literal["active", "first"] = "active",
    max_blocks: Count = 4,
    cache: Literal["none", "block"] = "none",
    temperature: Temperature = 0.0,
) -> Decoder:
    """Several blocks open at once; sure is probability >= or entropy <= `threshold`.

    Blocks have 32 positions, or those of a block-causal model.
    Guarantee: lossy in `threshold`; with both other thresholds at 1 the blocks follow
    one another, call by call as without a pipeline. `cache` is exact on block-causal
    models and refused on others.
    Cost: at most a call a token; cached calls evaluate the open blocks.
    """
    is_causal = model.attention == "block_causal"
    if not is_causal:
        if cache != "none":
            raise ValueError(
                f"cache={cache!r} keeps finished blocks, but {model.name} has "
                f"{model.attention} attention: use cache='none'"
            )
        block_length = min(block_length or 32, max_new_tokens)
    grid = blocks.of(model, block_length)

    def apply(key, row: Row, prediction):
        del key
        if rule == "confidence":
            sure = jnp.exp(prediction.log_prob) >= threshold
            score = prediction.log_prob
        else:
            sure, score = prediction.entropy <= threshold, -prediction.entropy
        before = jnp.pad(blocks.fraction(grid, row), (1, 0), constant_values=1.0)[:-1]
        must = row.block_of == row.block
        if forced == "active":
            must |= before[row.block_of] >= decoded_token_threshold
        nth = jnp.maximum(row.block_of - row.block, 0)
        best = commit.best_of_each(score, row.open & must, nth)
        return row.open & (sure | best)

    wants = ("entropy",) if rule == "entropy" else ()
    window, refresh = windows.canvas, None
    if cache == "block":
        window = windows.open_blocks(max_blocks)
        refresh = windows.finished(grid, max_blocks)
    return masked.masked_diffusion(
        model,
        commit.stateless(apply, wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=blocks.pipelined(grid, block_add_threshold, max_blocks),
        window=window,
        refresh=refresh,
    )
