"""BD3-LM: block after block, in random order inside a block, with an exact cache.

Arriola et al., 2025, arXiv:2503.09573, with its first-hitting sampler: time jumps to
the next commit, so that every call commits one position, chosen uniformly. Deviation:
the authors store a finished block by a call of its own; here it rides with the first
call of the next one.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature, TopP
from pdecode.rules import blocks, commit, windows


def bd3lm(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    temperature: Temperature = 1.0,
    top_p: TopP | None = None,
) -> Decoder:
    """First-hitting sampling of a block-causal model. The paper's top_p is 0.9.

    Guarantee: exact, the model's any-order law block by block.
    Cost: a call a token, of one block; of two where a block begins.
    """
    if model.attention != "block_causal":
        raise ValueError(
            f"bd3lm keeps finished blocks, but {model.name} has {model.attention} "
            f"attention and predicts={model.predicts!r}: use mdlm or llada"
        )
    grid = blocks.of(model, None)
    return masked.masked_diffusion(
        model,
        commit.one_by_one(commit.order("random")),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p=top_p),
        blocks=grid,
        window=windows.unit,
        refresh=windows.finished(grid),
    )
