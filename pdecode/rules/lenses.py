"""Lenses: changes of the law before anything is drawn from it or measured on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Lens, View


class Credits(NamedTuple):
    """Memory of one position: the tokens it lately held to be best."""

    ids: Array  # int32 [K]  V and above: nobody
    credit: Array  # float32 [K]


def credit(
    num_kept: int, alpha: Array | float, beta: Array | float, gamma: Array | float
) -> Lens:
    """Tokens that were best at a position for long are raised (CreditDecoding).

    A step multiplies all credit of the position by `beta`, gives p ** `gamma` more to
    its best token (of probability p before the raise), and adds alpha * log(1 + credit)
    to the logits. The dense rule keeps V credits a position; this one keeps `num_kept`
    and drops the smallest when one more token becomes best: the dense rule itself
    wherever no more than `num_kept` tokens ever were. Wang et al., 2025,
    arXiv:2510.06133. ValueError for num_kept below 1.
    """
    if num_kept < 1:
        raise ValueError(f"{num_kept=} must be at least 1")

    def init() -> Credits:
        nobody = jnp.full(num_kept, jnp.iinfo(jnp.int32).max, jnp.int32)
        return Credits(nobody, jnp.zeros(num_kept, jnp.float32))

    def apply(params, view: View, logits: Array, memory: Credits):
        del params, view
        ids, kept = memory.ids, beta * memory.credit
        top = jnp.argmax(logits).astype(jnp.int32)
        gain = jnp.exp(gamma * jax.nn.log_softmax(logits)[top])
        is_known = (ids == top).any()
        place = jnp.where(is_known, jnp.argmax(ids == top), jnp.argmin(kept))
        before = jnp.where(is_known, kept[place], 0.0)
        ids = ids.at[place].set(top)
        kept = kept.at[place].set((before + gain).astype(jnp.float32))
        raised = (alpha * jnp.log1p(kept)).astype(logits.dtype)
        return logits.at[ids].add(raised, mode="drop"), Credits(ids, kept)

    return Lens(apply, init)
