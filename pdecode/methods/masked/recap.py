"""ReCAP: between full calls only a few positions look again, over features kept.

Liu et al., 2025, arXiv:2505.19089 (reusing context features). A full call chooses the
positions of the next `local_steps` steps too, in order; those evaluate these positions
alone, over the keys and values that the full call left of all others. Deviations: a
token is drawn once, at a constant temperature, and ranked by its own probability; a row
with fewer open positions than `steps` ends early.
"""

from typing import Annotated

import jax.numpy as jnp
import numpy as np

from pdecode import rng
from pdecode.contracts import Decoder, Lanes, Row, Rule, Sampling, Window
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature
from pdecode.rules import commit


def recap(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 8,
    local_steps: Annotated[int, Size(0)] = 1,
    full_steps: Annotated[int, Size(0)] = 0,
    choice_temperature: Annotated[float, Knob(0, 1e6)] = 5.5,
    temperature: Temperature = 1.0,
) -> Decoder:
    """MaskGIT over L (1 - (j / steps)^2.5) masks; the first `full_steps` are all full.

    Guarantee: lossy, in the features kept too; `local_steps` 0 keeps none.
    Cost: at most `steps` calls; a local one asks for its few positions. They are
    evaluated in lanes of the whole canvas.
    """
    # A group is a full step and the local ones that follow it.
    late = np.maximum(np.arange(steps) - full_steps, 0) // (1 + local_steps)
    number = np.minimum(np.arange(steps), full_steps) + late
    groups, is_full = jnp.asarray(number), jnp.asarray(np.diff(number, prepend=-1) > 0)

    def shares(whole):
        """int32 [steps]: positions of each step, at least one, the last the rest."""
        place = jnp.arange(steps + 1) / steps
        left = jnp.floor(whole * (1 - place**2.5)).astype(jnp.int32)
        return jnp.maximum(left[:-1] - left[1:], 1).at[-1].set(whole)

    def apply(params, key, row: Row, prediction, rank):
        del params
        now = jnp.minimum(row.turn, steps - 1)
        count, place = shares(row.num_initial), jnp.arange(steps)
        of_group = groups == groups[now]
        total = jnp.where(of_group, count, 0).sum()
        done = jnp.where(of_group & (place < now), count, 0).sum()
        noise = rng.gumbel(rng.at(key, row.positions), 1)[..., 0]
        fades = choice_temperature * (1 - (groups[now] + 1) / (groups[-1] + 1))
        fresh = commit.ranks(prediction.log_prob + fades * noise, row.open)
        fresh = jnp.where(row.open & (fresh < total), fresh, steps + len(fresh))
        rank = jnp.where(is_full[now], fresh, rank)
        return row.open & (rank < done + count[now]), rank

    def window(blocks, shape) -> Window:
        del blocks
        place = jnp.arange(shape.length, dtype=jnp.int32)

        def look(row: Row) -> Lanes:
            now = jnp.minimum(row.turn, steps - 1)
            return Lanes(place, is_full[now] | (row.memory < shape.length))

        return Window(shape.length, look)

    return masked.masked_diffusion(
        model,
        Rule(lambda length: jnp.full(length, length + steps, jnp.int32), apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        window=window,
    )
