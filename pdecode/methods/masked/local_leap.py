"""LocalLeap: near a sure position, less confidence is asked.

Kong et al., 2025, arXiv:2510.07081.
"""

from typing import Annotated

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import blocks, commit


def local_leap(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    relaxed_threshold: Annotated[float, Knob(0, 1)] = 0.75,
    radius: Annotated[int, Size(0)] = 4,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit what passes `threshold`, or `relaxed_threshold` near what does.

    Near is within `radius` positions of an open one of the block that passes
    `threshold`. The authors' blocks have 32 positions.
    Guarantee: lossy; radius=0 or equal thresholds are the plain threshold rule.
    Cost: between one call a block and one a token.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)

    def apply(key, row: Row, prediction):
        del key
        confidence = jnp.exp(prediction.log_prob)
        anchors = row.open & (confidence >= threshold)
        relaxed = row.open & (confidence >= relaxed_threshold)
        relaxed &= is_near(anchors, row, radius)
        return relaxed | commit.sure(confidence, row.open, threshold)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=blocks.of(model, block_length),
    )


def is_near(marked: Array, row: Row, radius: int) -> Array:
    """bool [W]: lanes within `radius` positions of one of `marked`."""
    length = row.tokens.shape[0]
    where = jnp.where(marked, row.positions, length)
    on_canvas = jnp.zeros(length, jnp.int32).at[where].set(1, mode="drop")
    # Marks in front of each position, so that a stretch has some if its ends differ.
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(on_canvas)])
    first = jnp.maximum(row.positions - radius, 0)
    last = jnp.minimum(row.positions + radius + 1, length)
    return before[last] > before[first]
