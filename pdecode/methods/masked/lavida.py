"""LaViDa's sampler: few tokens in early steps, many in late ones.

Li et al., 2025, arXiv:2505.16839 (timestep shift). Deviation: shares are made positive
by moving each cumulated count up to the number of steps taken, in one pass.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, schedules


def lavida(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    shift: Annotated[float, Knob(1e-3, 1e3)] = 1 / 3,
    order: Literal[
        "low_confidence", "random", "entropy", "margin", "max_prob", "sequential"
    ] = "low_confidence",
    temperature: Temperature = 0.0,
) -> Decoder:
    """After a share r of a block's steps, shift * r / (1 + (shift - 1) r) is filled.

    `steps` defaults to one a token, where the shift has nothing to move; the authors
    take a half or a quarter of that. shift=1 is equal shares.
    Guarantee: lossy.
    Cost: at most `steps` calls of the whole canvas.
    """
    grid = blocks.of(model, block_length)
    by = commit.order(order)
    total = max_new_tokens if steps is None else steps
    length = grid.length or max_new_tokens
    per_block = schedules.steps_per_block(max_new_tokens, total, length)

    def apply(key, row: Row, prediction):
        share = schedules.shares(
            lambda progress: schedules.shifted(progress, shift),
            row.num_initial,
            per_block,
        )
        score = by.score(key, row, prediction)
        return commit.best(score, row.open, share[row.step])

    return masked.masked_diffusion(
        model,
        commit.stateless(apply, by.wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
    )
