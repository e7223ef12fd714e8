"""dInfer's iteration smoothing: masks carry the mean embedding of their last law.

Ma et al., 2025, arXiv:2510.08666. Its weight grows from call to call up to `weight`,
while the threshold falls from 1 down to `threshold`, as in the published code. No model
is trained on such masks.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import beliefs, blocks, commit


def iteration_smoothing(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    threshold_decay: Annotated[float, Knob(0, 1)] = 0.02,
    weight: Annotated[float, Knob(0, 1)] = 0.3,
    weight_init: Annotated[float, Knob(0, 1)] = 0.15,
    weight_growth: Annotated[float, Knob(0, 1)] = 0.02,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit what is within a hair of the best, or above a threshold that falls.

    The authors' blocks have 32 positions.
    Guarantee: lossy; `weight` 0 and `threshold_decay` 1 are dInfer's soft threshold
    from its second call on.
    Cost: between one call a block and one a token, of the whole canvas, with a second
    look at the head in each.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)

    def apply(key, row: Row, prediction):
        del key
        level = jnp.maximum(1 - row.turn * threshold_decay, threshold)
        return commit.nearly_best(jnp.exp(prediction.log_prob), row.open, level)

    smooth = beliefs.smoothed(
        model, lambda turn: jnp.minimum(weight_init + turn * weight_growth, weight)
    )
    return masked.masked_diffusion(
        smooth,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=blocks.of(model, block_length),
    )
