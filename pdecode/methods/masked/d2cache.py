"""d2Cache: the canvas is seen anew where it matters, and kept where it does not.

Jiang et al., 2025, arXiv:2509.23094. A call evaluates the open positions that are
likely to be filled next, by their last confidence times the certainty around; what was
filled in the last step; and of the rest those that attention takes most from. Only what
a call evaluated can be filled after it. Deviations: the first call evaluates the canvas
and reads the lanes of a later one, where nothing read yet counts as sure; the choice is
never widened to close gaps (0 in the authors' settings).
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Refresh, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, windows


def d2cache(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    current_k: Count = 32,
    rollout_p: Annotated[float, Knob(0, 1)] = 0.1,
    num_rollout: Count = 64,
    sigma: Count = 10,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Certainty-guided decoding over a cache of all but the chosen positions.

    `current_k` open positions and at most `num_rollout` others, as many as carry
    `rollout_p` of the attention. The model is `observed.rollout` of its configuration.
    Guarantee: lossy; lanes enough for the canvas, with rollout_p=1, are
    `certainty_density`.
    Cost: `steps` calls, the first of the whole canvas, the others of `current_k`,
    `num_rollout` and one step's lanes.
    """
    if model.observed is None:
        raise ValueError(
            f"d2Cache asks what attention takes from, which {model.name} does not "
            "tell: make the model by observed.rollout(config)"
        )
    grid = blocks.of(model, block_length)
    rule = commit.shared(commit.certain(sigma), max_new_tokens, steps, grid)
    num_filled = 1 if steps is None else -(-max_new_tokens // steps)

    def apply(params, key, row: Row, prediction, memory):
        inner, confidence = memory
        chosen, inner = rule.apply(params, key, row, prediction, inner)
        where = jnp.where(row.open, row.positions, len(confidence))
        now = jnp.exp(prediction.log_prob).astype(jnp.float32)
        return chosen, (inner, confidence.at[where].set(now, mode="drop"))

    window = windows.important(
        lambda row: row.memory[1] * commit.density(row, sigma),
        current_k, num_filled, num_rollout, rollout_p,
    )  # fmt: skip
    return masked.masked_diffusion(
        model,
        Rule(lambda n: (rule.init(n), jnp.ones(n)), apply, rule.wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        window=window,
        refresh=Refresh(lambda row: row.turn == 0),
    )
