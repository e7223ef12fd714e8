"""ReMDM on LLaDA: some steps late in a block reopen and refill its least sure tokens.

Wang et al., 2025, arXiv:2503.00307, as the authors ran it on LLaDA: `remdm_steps` steps
are put in at seven eighths of a block's steps; each reopens the `remdm_number` tokens
that were least likely when they were committed and then fills as many positions.
"""

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import blocks, commit, remask, schedules


def remdm_llada(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    remdm_steps: Count = 4,
    remdm_number: Count = 1,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's quota with a few steps of second thoughts in every block.

    Guarantee: lossy; biased even at one token a step, by ranking on the drawn token.
    Cost: `steps` calls of the whole canvas, and `remdm_steps` more a block.
    """
    grid = blocks.of(model, block_length)
    length = grid.length or max_new_tokens
    share = length
    if steps is not None:
        share = schedules.steps_per_block(max_new_tokens, steps, length)
    num_blocks = -(-max_new_tokens // length) + grid.is_absolute
    by = commit.order("low_confidence")

    def begin(row: Row):
        # A block with fewer open positions than steps is full sooner.
        used = jnp.minimum(share, row.num_initial)
        return jnp.clip(7 * used // 8, 1, jnp.maximum(used - 1, 1))

    def apply(key, row: Row, prediction):
        late = row.step - begin(row)
        step = jnp.where(late < remdm_steps, row.step, row.step - remdm_steps)
        count = schedules.quota(row.num_initial, step, share)
        is_extra = (late >= 0) & (late < remdm_steps)
        count = jnp.where(is_extra, remdm_number, count)
        return commit.best(by.score(key, row, prediction), row.open, count)

    def reopened(row: Row):
        # What the next step, an extra one, fills again.
        late = row.step + 1 - begin(row)
        is_before = (late >= 0) & (late < remdm_steps)
        return jnp.where(is_before, remdm_number, 0)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply, by.wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        remask=remask.least_sure(reopened, is_bounded=False),
        max_steps=num_blocks * (share + remdm_steps),
    )
