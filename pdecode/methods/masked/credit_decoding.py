"""CreditDecoding: tokens that stay best are believed sooner.

Wang et al., 2025, arXiv:2510.06133; defaults of the released decoder (dInfer). Credit
is earned by the law before the raise, and begins anew with each block. Deviation: a
position keeps the credit of `num_credits` tokens, not of the vocabulary: the smallest
is forgotten when one more token comes first.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, lenses


def credit_decoding(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    alpha: Annotated[float, Knob(0, 100)] = 0.7,
    beta: Annotated[float, Knob(0, 1)] = 0.8,
    gamma: Annotated[float, Knob(0, 100)] = 0.2,
    num_credits: Count = 8,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Confidence-threshold commits in a law raised by alpha * log(1 + credit).

    The authors' blocks have 32 positions; a block-causal model is decoded in its own.
    Guarantee: lossy; alpha=0 is the plain threshold rule.
    Cost: between one call a block and one a token; logits exist, on the dense path.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)
    return masked.masked_diffusion(
        model,
        commit.threshold(threshold),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.of(model, block_length),
        lenses=(lenses.credit(num_credits, alpha, beta, gamma),),
    )
