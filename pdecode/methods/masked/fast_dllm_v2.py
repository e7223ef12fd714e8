"""Fast-dLLM v2: parts of a block-causal model's block, one after another.

Wu et al., 2025, arXiv:2509.26328. The cache of finished blocks is exact. With
`use_block_cache` a call evaluates only the part being filled, and the block around it
is computed anew where a part begins. Deviation: the first token of a block comes from
its own first call, not from the one that stores the block before.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
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
    grid = blocks.parts(min(small_block_size, model.block_len), model.block_len)
    return masked.masked_diffusion(
        model,
        commit.threshold(threshold),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p=top_p, undrawn=masked.undrawn(model)),
        blocks=grid,
        window=windows.active_block if use_block_cache else windows.unit,
        refresh=windows.finished(grid, is_inner=use_block_cache),
    )
