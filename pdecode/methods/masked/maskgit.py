"""MaskGIT: a mask schedule over few steps, confidence with annealed noise.

Chang et al., 2022, arXiv:2202.04200 (section 3.2, algorithm 1). Known tokens are never
touched, so inpainting is a prompt with holes. The result is the last sample before
remasking: the final step commits everything.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import commit, schedules


def maskgit(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 12,
    schedule: Literal["cosine", "linear", "square", "cubic", "log", "exp"] = "cosine",
    choice_temperature: Annotated[float, Knob(0, 1e6)] = 4.5,
    temperature: Temperature = 1.0,
) -> Decoder:
    """Commit all but gamma(r) of the canvas, ranked by confidence plus Gumbel noise.

    Guarantee: lossy; biased even at one token a step, by ranking on the sampled token.
    Cost: at most `steps` calls of the whole canvas.
    """

    def apply(key, row: Row, prediction):
        num_open = row.open.sum()
        left = schedules.masks_left(
            schedule, row.step, steps, row.num_initial, num_open
        )
        score = commit.annealed(key, row, prediction, choice_temperature, steps)
        return commit.best(score, row.open, num_open - left)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
    )
