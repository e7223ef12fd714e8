"""The law of the step before, kept as its likeliest tokens: what has stopped changing.

Nothing of the vocabulary's size is kept. The divergence of two such laws is that of the
whole ones after all tokens that either lacks are made one: never above the true one,
and equal to it when K reaches the vocabulary.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Prediction, Row

__all__ = ["History", "blank", "changed", "divergence", "recorded"]

# One minus a sum of float32 probabilities is no better than this.
_TINY = 1e-7


class History(NamedTuple):
    """The last law at each position of a row, and for how long it has been calm."""

    ids: Array  # int32 [L, K]
    probs: Array  # float32 [L, K]
    count: Array  # int32 [L]  steps in a row that changed little; -1: no law yet


def blank(length: int, size: int) -> History:
    """No law before."""
    shape = (length, size)
    return History(
        jnp.full(shape, -1, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.full(length, -1, jnp.int32),
    )


def changed(history: History, row: Row, prediction: Prediction) -> tuple[Array, Array]:
    """(KL [W] of this law from the last one, bool [W]: there was one)."""
    at = row.positions
    now = (prediction.top_ids, jnp.exp(prediction.top_log_probs))
    return divergence(*now, history.ids[at], history.probs[at]), history.count[at] >= 0


def recorded(
    history: History, row: Row, prediction: Prediction, calm: Array
) -> History:
    """The history with this law at the open lanes; `calm` bool [W] counts on."""
    before = history.count[row.positions]
    count = jnp.where(calm & (before >= 0), before + 1, 0)
    probs = jnp.exp(prediction.top_log_probs).astype(jnp.float32)
    where = jnp.where(row.open, row.positions, row.tokens.shape[0])
    kept = zip(history, (prediction.top_ids, probs, count))
    return History(*(old.at[where].set(new, mode="drop") for old, new in kept))


def divergence(ids: Array, probs: Array, old_ids: Array, old_probs: Array) -> Array:
    """KL [W] of laws [W, K] from older ones, over the tokens both name and one rest."""
    same = ids[..., :, None] == old_ids[..., None, :]
    old = jnp.where(same, old_probs[..., None, :], 0).sum(-1)
    both = same.any(-1)
    rest = 1 - jnp.where(both, probs, 0).sum(-1)
    terms = jnp.where(both, _term(probs, old), 0).sum(-1)
    return terms + _term(rest, 1 - old.sum(-1))


def _term(p: Array, q: Array) -> Array:
    """p * log(p / q); nothing where p is as good as zero."""
    ratio = jnp.log(jnp.maximum(p, _TINY)) - jnp.log(jnp.maximum(q, _TINY))
    return jnp.where(p > _TINY, p * ratio, 0)
