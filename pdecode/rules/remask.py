"""Remask rules: which filled positions of one row to reopen after a commit."""

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Row, Rule


def bernoulli(probability: Array) -> Rule:
    """Each position filled before this step with `probability[turn]` (float32 [N])."""

    def apply(params, key, row: Row, prediction, memory):
        del params, prediction
        drawn = rng.uniform(rng.at(key, row.positions))
        return ~row.open & (drawn < probability[row.turn]), memory

    return Rule(lambda length: (), apply)


def by_recorded_confidence(probability: Array) -> Rule:
    """`bernoulli`, weighted by doubt: softmax of minus the probability at commit.

    Memory: float32 [L], the probability that each token had when it was committed. A
    row with nothing filled reopens nothing.
    """

    def init(length: int) -> Array:
        return jnp.zeros(length, jnp.float32)

    def apply(params, key, row: Row, prediction, recorded):
        del params
        filled = ~row.masked & row.generated
        committed = row.open & ~row.masked[row.positions]
        where = jnp.where(committed, row.positions, recorded.shape[0])
        now = jnp.exp(prediction.log_prob).astype(jnp.float32)
        recorded = recorded.at[where].set(now, mode="drop")
        # A softmax over nothing would be NaN.
        score = jnp.where(filled, -recorded, -jnp.inf)
        share = jnp.where(
            filled.any(), jax.nn.softmax(jnp.where(filled, score, -1e9)), 0
        )
        weight = jnp.where(filled, share, 0)[row.positions]
        drawn = rng.uniform(rng.at(key, row.positions))
        return ~row.open & (drawn < weight * probability[row.turn]), recorded

    return Rule(init, apply)
