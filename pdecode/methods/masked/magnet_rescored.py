"""MAGNeT with a rescorer: an autoregressive model has a say in which spans stay.

Ziv et al., 2024, arXiv:2401.04577 (section on rescoring; the published code has none).
Deviations: those of `magnet`; the judge reads the codebooks one behind another, as the
canvas holds them.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import (
    Count,
    Knob,
    MaskedModel,
    NextModel,
    Size,
    Temperature,
    TopK,
    TopP,
)
from pdecode.rules import blocks, spans


def magnet_rescored(
    model: MaskedModel,
    judge: NextModel,
    *,
    max_new_tokens: Count,
    decoding_steps: Annotated[tuple[int, ...], Size()] = (20, 10, 10, 10),
    span_len: Count = 3,
    rescore_weight: Annotated[float, Knob(0, 1)] = 0.7,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = 0.9,
) -> Decoder:
    """A token counts w * judge's probability + (1 - w) * the model's own.

    The judge reads all tokens drawn in a step, in one call; it draws none.
    Guarantee: lossy as MAGNeT is, whose canvases it passes through at w = 0.
    Cost: that of MAGNeT, and a call of the judge a step, told as a drafter's.
    """
    if judge.vocab_size != model.vocab_size:
        raise ValueError(
            f"{judge.name} has {judge.vocab_size} ids, but {model.name} has "
            f"{model.vocab_size}: a judge must read the model's tokens"
        )
    frames = blocks.shared(max_new_tokens, decoding_steps)

    def score(params, row, prediction):
        told = jnp.exp(spans.judged(judge, params, row, prediction))
        own = jnp.exp(prediction.log_prob)
        return jnp.log(rescore_weight * told + (1 - rescore_weight) * own)

    rule = spans.cosine(frames, span_len, decoding_steps, score)
    return masked.masked_diffusion(
        model,
        rule._replace(role="judge", num_calls=1),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        blocks=blocks.generation(frames),
    )
