"""dParallel: commit whatever the model is certain of, certainty being low entropy.

Chen et al., 2025, arXiv:2509.26488 (decoding of models trained by certainty-forcing
distillation).
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def dparallel(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    entropy_threshold: Annotated[float, Knob(0, 1e6)] = 0.5,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit every position with at most `entropy_threshold` nats, at least one.

    The authors' blocks have 32 positions; a block-causal model is decoded in its own.
    Guarantee: lossy, in `entropy_threshold`; positions are chosen blind to the draws,
    and at 0 one is filled a step, beside those that are certain.
    Cost: between one call a block and one a token.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)
    return masked.masked_diffusion(
        model,
        commit.above(commit.order("entropy"), -entropy_threshold),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.of(model, block_length),
    )
