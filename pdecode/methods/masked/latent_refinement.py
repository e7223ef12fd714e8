"""LRD: masks that carry what is believed of them, refined before anything is filled.

Zhu et al., 2025, arXiv:2510.11052 (latent refinement decoding). First the block's masks
are only mixed with their last law, until that hardly changes; then the least uncertain
are filled each step, and all that is left once the laws stand still. Deviation: change
is measured on the `num_kept` likeliest tokens (`rules.histories`): it is understated.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import beliefs, blocks, commit, histories


def latent_refinement(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    r_f: Annotated[float, Knob(0, 1)] = 0.2,
    top_p: Annotated[float, Knob(0, 1)] = 0.9,
    t_refine: Annotated[int, Size(0)] = 20,
    tau_refine: Annotated[float, Knob(0, 1e6)] = 0.1,
    tau_decode: Annotated[float, Knob(0, 1e6)] = 0.1,
    num_transfer_tokens: Count = 1,
    num_kept: Count = 8,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Refine soft masks at most `t_refine` steps a block, then fill by low entropy.

    Both phases end when the mean divergence over open positions is below their tau.
    Guarantee: lossy; r_f=0, t_refine=0 and tau_decode=0 leave the plain entropy order.
    Cost: refining calls and at most one a `num_transfer_tokens`, of the whole canvas,
    with a second look at the head in each. Models are not trained on mixed masks.
    """
    grid = blocks.of(model, block_length)
    size = min(num_kept, model.vocab_size)

    def apply(params, key, row: Row, prediction, memory):
        del params, key
        history, decoding = memory
        is_new = row.step == 0
        decoding = jnp.where(is_new, t_refine == 0, decoding)
        gap, known = histories.changed(history, row, prediction)
        known &= row.open
        mean = jnp.where(known, gap, 0).sum() / jnp.maximum(known.sum(), 1)
        is_still = decoding & known.any() & (mean < tau_decode)
        few = commit.best(-prediction.entropy, row.open, num_transfer_tokens)
        chosen = jnp.where(is_still, row.open, few & decoding)
        is_ready = known.any() & (mean < tau_refine)
        decoding |= is_ready | (row.step + 1 >= t_refine)
        history = histories.recorded(history, row, prediction, row.open)
        return chosen, (history, decoding)

    def init(length: int):
        return histories.blank(length, size), jnp.zeros((), bool)

    num_blocks = -(-max_new_tokens // (grid.length or max_new_tokens)) + 1
    return masked.masked_diffusion(
        beliefs.softened(model, r_f, top_p),
        Rule(init, apply, ("entropy", f"top:{size}")),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=grid,
        progress="schedule",
        max_steps=num_blocks * t_refine + max_new_tokens,
    )
