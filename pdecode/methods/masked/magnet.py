"""MAGNeT: one codebook after another, whole spans of frames at a time.

Ziv et al., 2024, arXiv:2401.04577. The canvas holds the codebooks one behind another,
each a block. Deviations: temperature and guidance are constant over a block's steps, no
other model rescores the spans, and every step keeps at least one span.
"""

import math
from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import blocks, commit


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
    num_codebooks = len(decoding_steps)
    if max_new_tokens % num_codebooks:
        raise ValueError(
            f"{max_new_tokens=} is no multiple of the {num_codebooks} codebooks in "
            f"{decoding_steps=}"
        )
    frames = max_new_tokens // num_codebooks
    table = jnp.asarray(decoding_steps, jnp.int32)

    def apply(key, row: Row, prediction):
        del key
        span = jnp.maximum(row.positions - row.prompt_end, 0) % frames // span_len
        num_lanes = len(row.positions)
        # Spans are told by their first open lane, whose score is that of the best one.
        best = commit.best_of_each(prediction.log_prob, row.open, span)
        num_spans = -(-row.num_initial // span_len)
        steps = table[jnp.minimum(row.block, num_codebooks - 1)]
        angle = math.pi / 2 * (row.step + 1) / jnp.maximum(steps - 1, 1)
        left = jnp.maximum((jnp.cos(angle) * num_spans).astype(jnp.int32), 1)
        left = jnp.where(row.step + 1 >= steps, 0, jnp.minimum(left, best.sum() - 1))
        kept = commit.best(prediction.log_prob, best, best.sum() - left)
        is_kept = jnp.zeros(num_lanes, bool).at[span].max(kept)
        return row.open & is_kept[span]

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        blocks=blocks.generation(frames),
    )
