"""dInfer's decoders: a soft threshold, and a position of every run of masks.

Ma et al., 2025, arXiv:2510.08666. "threshold": what is within a hair of the best, or
above the threshold. "hierarchical": also the most confident position of each run of
open positions, if it is above `low_threshold`: the runs are cut in two by every step.
"hierarchical_fast": the best one alone while it is below `low_threshold`.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def hierarchical(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    decoder: Literal["threshold", "hierarchical", "hierarchical_fast"] = "hierarchical",
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    low_threshold: Annotated[float, Knob(0, 1)] = 0.4,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit above a threshold, and one position of every run of open ones.

    The authors' blocks have 32 positions.
    Guarantee: lossy, in both thresholds.
    Cost: at best about log2 of a block's length in calls a block, at most one a token.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)

    def apply(key, row: Row, prediction):
        del key
        confidence = jnp.exp(prediction.log_prob)
        if decoder == "threshold":
            return commit.nearly_best(confidence, row.open, threshold)
        best = commit.best(prediction.log_prob, row.open, 1)
        heads = best_of_runs(confidence, row) & (confidence > low_threshold)
        chosen = best | heads | (row.open & (confidence > threshold))
        if decoder == "hierarchical_fast":
            top = jnp.where(row.open, confidence, -1.0).max()
            chosen = jnp.where(top < low_threshold, best, chosen)
        return chosen

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=blocks.of(model, block_length),
    )


def best_of_runs(confidence: Array, row: Row) -> Array:
    """bool [W]: the most confident lane, the first of equals, of each run of open ones.

    A run is a stretch of neighbouring positions; it ends where the open lanes do.
    """
    length = row.tokens.shape[0]
    where = jnp.where(row.open, row.positions, length)
    score = jnp.full(length, -1.0).at[where].set(confidence, mode="drop")
    run = jnp.cumsum(score < 0)
    top = jax.ops.segment_max(score, run, num_segments=length + 1)[run]
    is_top = (score >= 0) & (score == top)
    # Of equals in a run the first: as many before it as before its run.
    seen = jnp.cumsum(is_top)
    before = seen - is_top
    first = jax.ops.segment_min(before, run, num_segments=length + 1)[run]
    return row.open & (is_top & (before == first))[row.positions]
