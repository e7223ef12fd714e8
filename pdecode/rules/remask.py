"""Remask rules: which filled positions of one row to reopen after a commit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Row, Rule
from pdecode.rules import commit

__all__ = ["bernoulli", "by_recorded_confidence", "least_sure"]


def bernoulli(probability: Array) -> Rule:
    """Each position filled before this step with `probability[turn]` (float32 [N])."""

    def apply(params, key, row: Row, prediction, memory):
        del params, prediction
        drawn = rng.uniform(rng.at(key, row.positions))
        return ~row.open & (drawn < probability[row.turn]), memory

    return Rule(lambda length: (), apply)


def by_recorded_confidence(probability: Array) -> Rule:
    """`bernoulli`, weighted by doubt: softmax of minus the probability at commit.

    A row with nothing filled reopens nothing.
    """

    def apply(params, key, row: Row, prediction, memory):
        del params, prediction
        filled = ~row.masked & row.generated
        # A softmax over nothing would be NaN.
        score = jnp.where(filled, -jnp.exp(row.log_probs), -1e9)
        share = jnp.where(filled, jax.nn.softmax(score), 0)
        weight = jnp.where(filled.any(), share, 0)[row.positions]
        drawn = rng.uniform(rng.at(key, row.positions))
        return ~row.open & (drawn < weight * probability[row.turn]), memory

    return Rule(lambda length: (), apply)


def least_sure(count: Callable[[Row], Array], *, is_bounded: bool = True) -> Rule:
    """The `count` filled positions of the block with the lowest probability at commit.

    What this step committed is among them.
    """

    def apply(params, key, row: Row, prediction, memory):
        del params, key, prediction
        filled = (row.generated & ~row.masked)[row.positions] & ~row.probe
        filled &= row.block_of == row.block
        doubt = -row.log_probs[row.positions]
        return commit.best(doubt, filled, count(row)), memory

    return Rule(lambda length: (), apply, is_bounded=is_bounded)
