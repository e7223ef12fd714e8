"""LLaDA 2.1: a threshold fills, another one edits, and a full block is edited on.

Bie et al., 2026, LLaDA2.1, arXiv:2602.08676. In every step a token of the block is
replaced where another one is drawn with a probability above `editing_threshold`. A full
block gets up to `max_post_steps` steps more, as long as they change it. The thresholds
are those of the published code; its README has 0.7 and 0.5 for quality, 0.5 and 0 for
speed. LLaDA 2.0 is `fast_dllm` with the exact cache. Deviation: a row ends once all
before its first end token is filled; what stands there is edited no more.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature, TopK, TopP
from pdecode.rules import blocks, commit, windows


def llada2(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    threshold: Annotated[float, Knob(0, 1)] = 0.95,
    editing_threshold: Annotated[float, Knob(0, 1)] = 0.9,
    max_post_steps: Count = 16,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Mask to token above `threshold`, token to token above `editing_threshold`.

    Blocks have 32 positions, or those of a block-causal model, whose cache is exact.
    Guarantee: lossy in both thresholds; an editing threshold of 1 edits nothing.
    Cost: at most a call a token and `max_post_steps` a block, at least one of them.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)
    grid = blocks.of(model, block_length)
    kind = "dual" if model.attention == "block_causal" else "none"
    window, refresh = windows.cached(model, grid, kind)

    def fill(key, row: Row, prediction):
        del key
        confidence = commit.as_drawn(prediction, temperature)
        return commit.sure(confidence, row.open, threshold)

    def edit(params, key, row: Row, prediction, memory):
        del params, key
        sure = commit.as_drawn(prediction, temperature) > editing_threshold
        return sure & (row.block_of == row.block), memory

    return masked.masked_diffusion(
        model,
        commit.stateless(fill, ("sampled_log_prob",)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p, undrawn=masked.undrawn(model)),
        blocks=grid,
        edit=Rule(lambda length: (), edit, ("sampled_log_prob",)),
        settle=max_post_steps,
        window=window,
        refresh=refresh,
    )
