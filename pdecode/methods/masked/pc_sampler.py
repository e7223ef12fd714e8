"""PC-Sampler: front to back, and trivial tokens last.

Huang et al., 2025, arXiv:2508.13021. A position's score is its confidence times minus
the log of its token's frequency in a background text, clipped, and falls with the
distance from the prompt. Deviation: holes of a prompt count as next to it.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Background, Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, schedules


def pc_sampler(
    model: MaskedModel,
    background: Background,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    lambda_val: Annotated[float, Knob(0, 1e6)] = 0.25,
    alpha: Annotated[float, Knob(0, 1e6)] = 10.0,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Equal shares of each block, best first by confidence against a background.

    `lambda_val` pulls towards the prompt, `alpha` clips; the params of the role
    "background" are each token's frequency, float32 [V].
    Guarantee: lossy, and biased even at one token a step, as its order looks at the
    tokens drawn.
    Cost: `steps` calls of the whole canvas.
    """
    if background.vocab_size != model.vocab_size:
        raise ValueError(
            f"the background has {background.vocab_size} frequencies, but {model.name} "
            f"has {model.vocab_size} ids: count every id, the mask included"
        )
    grid = blocks.of(model, block_length)
    total = max_new_tokens if steps is None else steps
    length = grid.length or max_new_tokens
    share = schedules.steps_per_block(max_new_tokens, total, length)

    def apply(frequency, key, row: Row, prediction, memory):
        del key
        rare = -jnp.log(frequency[prediction.token] + 1e-9)
        worth = jnp.minimum(jnp.exp(prediction.log_prob) * rare, alpha)
        away = jnp.maximum(row.positions - row.prompt_end, 0)
        score = jnp.exp(-lambda_val * away) * worth
        count = schedules.quota(row.num_initial, row.step, share)
        return commit.best(score, row.open, count), memory

    return masked.masked_diffusion(
        model,
        Rule(lambda length: (), apply, role="background"),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
    )
