"""RCR: fills everything, then reopens what was least sure when it was filled.

He et al., 2025, MDPO, arXiv:2508.13148 (running confidence remasking). A token that
survives a step may be reopened by a later one. Deviation: in a block with fewer open
positions than steps, it ends early.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import blocks, commit, remask, schedules


def rcr(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's equal shares, with every token of the block put to the test each step.

    Defaults: one token a step, one block.
    Guarantee: lossy; biased even at one token a step, by ranking on the drawn token.
    Cost: `steps` calls of the whole canvas.
    """
    grid = blocks.of(model, block_length)
    length = grid.length or max_new_tokens
    share = length
    if steps is not None:
        share = schedules.steps_per_block(max_new_tokens, steps, length)

    def left(row):
        return schedules.unfilled(row.num_initial, row.step, share)

    return masked.masked_diffusion(
        model,
        commit.stateless(lambda key, row, prediction: row.open),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        remask=remask.least_sure(left),
    )
