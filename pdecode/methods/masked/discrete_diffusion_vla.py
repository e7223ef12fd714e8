"""Discrete diffusion VLA: MaskGIT whose kept tokens are tested again each step.

Liang et al., 2025, arXiv:2508.20072. A kept token is reopened when its probability on
the present canvas is below `eta` times the progress, or has fallen by more than `drop`
since it was kept. As many more are filled, so that the schedule holds. The published
code scales the scores of kept tokens instead; the two tests are the paper's.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import commit, schedules


def discrete_diffusion_vla(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 12,
    schedule: Literal["cosine", "linear", "square", "cubic", "log", "exp"] = "cosine",
    choice_temperature: Annotated[float, Knob(0, 1e6)] = 1.0,
    eta: Annotated[float, Knob(0, 1)] = 0.1,
    drop: Annotated[float, Knob(0, 1)] = 0.3,
    temperature: Temperature = 1.0,
) -> Decoder:
    """Adaptive order with secondary remasking; eta 0 and drop 1 are MaskGIT.

    Guarantee: lossy; biased even at one token a step, by ranking on the drawn token.
    Cost: at most `steps` calls of the whole canvas.
    """

    def plan(row: Row, prediction, was_open):
        """(how many stay open, which filled lanes are doubted) of this step."""
        num_open = was_open.sum()
        left = schedules.masks_left(
            schedule, row.step, steps, row.num_initial, num_open
        )
        now = jnp.exp(prediction.of_log_prob)
        before = jnp.exp(row.log_probs[row.positions])
        doubt = (now < eta * (row.step + 1) / steps) | (before - now > drop)
        doubt &= row.generated[row.positions] & ~was_open
        return left, commit.best(-now, doubt, left)

    def fill(key, row: Row, prediction):
        left, doubt = plan(row, prediction, row.open)
        score = commit.annealed(key, row, prediction, choice_temperature, steps)
        return commit.best(score, row.open, row.open.sum() + doubt.sum() - left)

    def reopen(params, key, row: Row, prediction, memory):
        del params, key
        return plan(row, prediction, row.open)[1], memory

    wants = ("of_log_prob",)
    return masked.masked_diffusion(
        model,
        commit.stateless(fill, wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        remask=Rule(lambda length: (), reopen, wants, is_bounded=True),
    )
