"""Prophet: stop early once the answer is clear, and fill the rest at once.

Li et al., 2025, arXiv:2508.19982. The gap between the two largest logits, averaged over
the answer's positions, must pass a threshold that falls in three stages. The answer is
where the caller says; a phrase before it is a prompt that ends in it, with holes.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import blocks, commit, stops


def prophet(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    answer_start: Annotated[int, Size(0)] = 0,
    answer_length: Count | None = None,
    high: Annotated[float, Knob(-1e30, 1e30)] = 7.5,
    middle: Annotated[float, Knob(-1e30, 1e30)] = 5.0,
    low: Annotated[float, Knob(-1e30, 1e30)] = 2.5,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's sampler, left when the mean gap of the answer passes a threshold.

    The answer's positions are counted from the end of the prompt (`answer_length` None:
    all that is generated); the threshold is `high` in the first third of `steps`,
    `middle` in the second, then `low`.
    Guarantee: lossy, in the thresholds, and as LLaDA's sampler is.
    Cost: at most `steps` calls of the whole canvas.
    """
    length = max_new_tokens if answer_length is None else answer_length
    grid = blocks.of(model, block_length)
    by = commit.order("low_confidence")
    total = max_new_tokens if steps is None else steps
    return masked.masked_diffusion(
        model,
        commit.shared(by, max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        stop=stops.clear_gap(answer_start, length, total, (high, middle, low)),
    )
