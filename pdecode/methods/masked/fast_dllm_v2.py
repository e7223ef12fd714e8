"""Fast-dLLM v2: parts of a block-causal model's block, one after another.

Wu et al., 2025, arXiv:2509.26328. The cache of finished blocks is exact. A shifted
model reads a block's first token off the block before: it is filled alone, by the call
that stores that block. With `use_block_cache` a call evaluates only the part being
filled, and the block around it is computed anew until the part's first position is
filled. Deviations: that cache is not kept from one block to the next, where the
authors' code reads the block before; above temperature 0 a block's first token is drawn
as all others are; the first token behind a prompt of whole blocks costs a call.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature, TopP
from pdecode.rules import blocks, commit, windows


def fast_dllm_v2(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    small_block_size: Count = 8,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    use_block_cache: bool = False,
    temperature: Temperature = 0.0,
    top_p: TopP | None = 0.95,
) -> Decoder:
    """Commit what is surer than `threshold`, at least one, part by part.

    Guarantee: lossy in `threshold` and in the block cache; that of finished blocks is
    exact.
    Cost: between one call a part and one a token, of a block or a part.
    """
    if model.attention != "block_causal" or model.block_len is None:
        raise ValueError(
            f"fast_dllm_v2 keeps finished blocks, but {model.name} has "
            f"{model.attention} attention, predicts={model.predicts!r}: use fast_dllm"
        )
    size = model.block_len
    grid = blocks.parts(min(small_block_size, size), size)

    def apply(key, row: Row, prediction):
        del key
        confidence = commit.as_drawn(prediction, temperature)
        chosen = commit.sure(confidence, row.open, threshold)
        first = row.open & (row.positions % size == 0) & model.is_shifted
        return jnp.where(first.any(), first, chosen)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply, ("sampled_log_prob",)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p=top_p, undrawn=masked.undrawn(model)),
        blocks=grid,
        window=windows.active_block if use_block_cache else windows.unit,
        refresh=windows.finished(grid, is_inner=use_block_cache),
    )
