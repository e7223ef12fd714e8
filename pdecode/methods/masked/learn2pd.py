"""Learn2PD: a learned filter says which positions of a block are ready.

Bao et al., 2025, arXiv:2509.25188, with its end-of-text prediction. The filter reads
the confidence of every position of the block; a position past the row's end or in front
of its first block counts as certain.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from pdecode.contracts import Blocks, Decoder, Filter, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, stops


def learn2pd(
    model: MaskedModel,
    filter: Filter,
    *,
    max_new_tokens: Count,
    accept_thres: Annotated[float, Knob(0, 1)] = 0.96,
    predict_eot: bool = True,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit what the filter is sure of, and always the most confident position.

    `predict_eot` ends a row behind the first EOS that the filter accepts, or else
    behind the most confident EOS predicted anywhere: a row may then end without one
    (stopped by "truncated").
    Guarantee: lossy, in `accept_thres` and in `predict_eot`.
    Cost: between one call a block and one a token, of what is left of the canvas.
    """
    grid = blocks.of(model, filter.block_length)
    return masked.masked_diffusion(
        model,
        filtered(filter, grid, accept_thres),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        truncate=stops.end_of_text(model.eos_ids) if predict_eot else None,
    )


def filtered(filter: Filter, grid: Blocks, level) -> Rule:
    """The positions of the block with sigmoid(filter) > `level`, and the best one."""
    length = filter.block_length

    def apply(params, key, row: Row, prediction, memory):
        del key
        origin = 0 if grid.is_absolute else row.prompt_end
        place = (row.positions - origin) % length
        is_here = (row.block_of == row.block) & (row.positions >= origin)
        is_here &= row.positions < row.end
        confidence = (
            jnp.ones(length)
            .at[jnp.where(is_here, place, length)]
            .set(jnp.exp(prediction.log_prob), mode="drop")
        )
        ready = jax.nn.sigmoid(filter.apply(params, confidence)) > level
        chosen = row.open & is_here & ready[place]
        return chosen | commit.best(prediction.log_prob, row.open, 1), memory

    return Rule(lambda length: (), apply, role="filter")
