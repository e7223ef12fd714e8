"""UNCAGE: what clearly belongs to one thing of the prompt is drawn first.

Kang et al., 2025, arXiv:2508.05399. Read off the abstract, as no code is public: a map
is how much each position attends to one object of the prompt and its attributes, mean
over layers and heads, smoothed on the grid and stretched to [0, 1]. A position has the
contrast of its largest map to the largest of the others. The weights are ours.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import attended, commit, schedules


def uncage(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 12,
    row_length: Count | None = None,
    guided_steps: Annotated[int, Size(0)] | None = None,
    weight: Annotated[float, Knob(0, 1e6)] = 4.5,
    choice_temperature: Annotated[float, Knob(0, 1e6)] = 4.5,
    temperature: Temperature = 1.0,
) -> Decoder:
    """MaskGIT whose ranking has `weight` times the contrast in its first steps.

    Those are `guided_steps`, None: half of them. The model is `observed.groups` of its
    configuration, `prompt.context` says which tokens name what.
    Guarantee: lossy; biased even at one token a step, by ranking on the sampled token.
    A `weight` of 0 is MaskGIT: only the order is guided.
    Cost: at most `steps` calls of the whole canvas, each with the weights of attention.
    """
    if model.observed is None:
        raise ValueError(
            f"UNCAGE asks what each position attends to, which {model.name} does not "
            "tell: make the model by observed.groups(config, num_groups)"
        )
    last = steps // 2 if guided_steps is None else guided_steps
    width = min(row_length or max_new_tokens, max_new_tokens)
    shape = -(-max_new_tokens // width), width

    def apply(key, row: Row, prediction):
        num_open = row.open.sum()
        left = schedules.masks_left(
            "cosine", row.step, steps, row.num_initial, num_open
        )
        score = commit.annealed(key, row, prediction, choice_temperature, steps)
        place = jnp.clip(row.positions - row.prompt_end, 0, max_new_tokens - 1)
        pull = jnp.where(row.step < last, weight, 0.0)
        # Holes of the prompt lie in no cell.
        contrast = attended.contrast(row, shape)[place]
        score += jnp.where(row.positions >= row.prompt_end, pull * contrast, 0.0)
        return commit.best(score, row.open, num_open - left)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
    )
