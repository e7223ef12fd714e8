"""MMM: a mask schedule as long as the sequence is, ranked by confidence alone.

Pinyoanuntapong et al., 2023, arXiv:2312.03596. What is known is pinned, so editing a
motion is a prompt with holes. Deviation: a step that would fill nothing is not spent.
"""

import math

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import commit


def mmm(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 10,
    reference_length: Count = 49,
    temperature: Temperature = 1.0,
) -> Decoder:
    """Cosine schedule over round(steps * n / reference_length) + 1 steps for n masks.

    At most `steps` of them. Every row has its own n and its own schedule.
    Guarantee: lossy; biased even at one token a step, by ranking on the drawn token.
    Cost: at most `steps` calls of the whole canvas.
    """

    def apply(key, row: Row, prediction):
        del key
        whole = row.num_initial
        last = jnp.maximum(jnp.round(steps * whole / reference_length), 1)
        done = row.step + 1
        left = jnp.floor(jnp.cos(math.pi / 2 * done / last) * whole).astype(jnp.int32)
        is_last = (done > last) | (done >= steps)
        left = jnp.where(is_last, 0, jnp.maximum(left, 1))
        return commit.best(prediction.log_prob, row.open, row.open.sum() - left)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
    )
