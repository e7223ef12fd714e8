"""MAGNeT: one codebook after another, whole spans of frames at a time.

Ziv et al., 2024, arXiv:2401.04577. The canvas holds the codebooks one behind another,
each a block. Deviations: temperature and guidance are constant over a block's steps,
and every step keeps at least one span.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import blocks, spans


def magnet(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    decoding_steps: Annotated[tuple[int, ...], Size()] = (20, 10, 10, 10),
    span_len: Count = 3,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = 0.9,
) -> Decoder:
    """Cosine schedule over spans; a span counts as sure as its likeliest token.

    `decoding_steps` are those of each codebook; a span that was kept stays.
    Guarantee: lossy; tokens of one step are drawn independently, and spans are ranked
    by the drawn tokens.
    Cost: at most the sum of `decoding_steps` calls of the whole canvas.
    """
    frames = blocks.shared(max_new_tokens, decoding_steps)
    return masked.masked_diffusion(
        model,
        spans.cosine(
            frames, span_len, decoding_steps, lambda params, row, p: p.log_prob
        ),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        blocks=blocks.generation(frames),
    )
