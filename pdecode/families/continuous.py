"""Drafts of continuous tokens, verified by a target that gives densities.

Continuous speculative decoding (CSpD): Wang et al., 2024, arXiv:2411.11925. Values are
no tokens, so this is no `Decoder`: a model is a function that gives the Gaussian of a
value from those before it, such as the last step of a diffusion head.

Lossless: the values' joint law is the target's, whatever the drafter. Deviations, all
towards that: acceptance ends at the first refusal and what was drafted behind it is
drawn anew; densities are not flattened, and a refusal is tried until it is answered.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.rules import densities
from pdecode.rules.densities import Gaussian

# (values float32 [B, L], places int32 [B, K]) -> laws [B, K], each from what stands
# before its place.
Laws = Callable[[Array, Array], Gaussian]


class Drawn(NamedTuple):
    """The result."""

    values: Array  # float32 [B, N]
    num_calls: Array  # int32 [B]  of the target
    num_accepted: Array  # int32 [B]  drafted values that were kept


def speculative(
    target: Laws, drafter: Laws, keys: Array, *, num_values: int, num_draft: int
) -> Drawn:
    """`num_values` values a row; keys [B] of rows. At most a target call a value.

    Raises ValueError for fewer than one value or draft.
    """
    if min(num_values, num_draft) < 1:
        raise ValueError(f"{num_values=} and {num_draft=} must be at least 1")
    batch, room = keys.shape[0], num_values + num_draft + 1

    def unfinished(state):
        return (state[1] < num_values).any()

    def turn(state):
        values, length, calls, accepted = state
        new, count = _round(target, drafter, keys, values, length, calls, num_draft)
        active = length < num_values
        values = jnp.where(active[:, None], new, values)
        left = num_values - length
        return (
            values,
            jnp.where(active, jnp.minimum(length + count + 1, num_values), length),
            calls + active,
            accepted + jnp.where(active, jnp.minimum(count, left), 0),
        )

    zero = jnp.zeros(batch, jnp.int32)
    start = (jnp.zeros((batch, room)), zero, zero, zero)
    values, _, calls, accepted = jax.lax.while_loop(unfinished, turn, start)
    return Drawn(values[:, :num_values], calls, accepted)


def _round(target, drafter, keys, values, length, turn, num_draft):
    """The values with a draft and its answer behind `length`, and how many it kept."""
    nth, room = jnp.arange(values.shape[0])[:, None], values.shape[1]
    laws = []
    for offset in range(num_draft):
        place = length[:, None] + offset
        law = drafter(values, place)
        key = rng.noise(keys, rng.DRAFT, place, round=turn)
        values = values.at[nth, place].set(densities.draw(law, key))
        laws.append(law)
    q = jax.tree.map(lambda *each: jnp.concatenate(each, 1), *laws)
    place = length[:, None] + jnp.arange(num_draft + 1)[None]
    p = target(values, place)
    drafted = jnp.take_along_axis(values, place[:, :-1], 1)
    key = rng.noise(keys, rng.ACCEPT, place[:, :-1], round=turn)
    first = jax.tree.map(lambda leaf: leaf[:, :-1], p)
    count = leading(densities.accepts(first, q, drafted, key))[:, None]
    # Behind a whole draft there is no q: the value is the target's own.
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 1)), mode="edge"), q)
    here, there = (
        jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, count, 1), law)
        for law in (p, padded)
    )
    answer = densities.residual(
        here,
        there,
        rng.noise(keys, rng.RESIDUAL, length[:, None] + count, round=turn),
        # Rows that are done need no answer that takes long to find.
        (count < num_draft) & (length[:, None] + count < room - num_draft - 1),
    )
    return values.at[nth, length[:, None] + count].set(answer), count[:, 0]


def leading(accepted: Array) -> Array:
    """How many stand before the first refusal, int32 [B] of bool [B, K]."""
    return jnp.cumprod(accepted.astype(jnp.int32), 1).sum(1)
