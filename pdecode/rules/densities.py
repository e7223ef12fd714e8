"""Continuous tokens: acceptance by a ratio of densities, and what a refusal draws.

The continuous twin of rejection sampling of drafts, as continuous speculative decoding
needs it (Wang et al., 2024, arXiv:2411.11925).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng

__all__ = ["Gaussian", "accepts", "draw", "log_density", "residual"]


class Gaussian(NamedTuple):
    """Laws of values, of any shape."""

    mean: Array
    std: Array  # above 0


def log_density(law: Gaussian, value: Array) -> Array:
    """Nats at `value`: differences of these never underflow, as ratios would."""
    scaled = (value - law.mean) / law.std
    return -0.5 * jnp.square(scaled) - jnp.log(law.std) - 0.5 * math.log(2 * math.pi)


def draw(law: Gaussian, keys: Array) -> Array:
    """One value of each law, for keys of its shape."""
    flat = jax.vmap(lambda key: jax.random.normal(key))(keys.reshape(-1))
    return law.mean + law.std * flat.reshape(keys.shape)


def accepts(p: Gaussian, q: Gaussian, value: Array, keys: Array) -> Array:
    """bool: `value`, drawn from q, with probability min(1, p / q) there."""
    gap = log_density(p, value) - log_density(q, value)
    return jnp.log1p(-rng.uniform(keys)) <= gap


def residual(p: Gaussian, q: Gaussian, keys: Array, wanted: Array) -> Array:
    """Values from max(0, p - q), normalised, where `wanted`; from p elsewhere.

    By trial: x from p is kept with probability max(0, 1 - q(x) / p(x)), which over all
    x is the share of refusals, so that a refusal waits the longer the rarer it is.
    """

    def turn(state):
        number, value, done = state
        places = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), number)
        new, kept = jax.vmap(jax.random.split, out_axes=1)(places)
        found = draw(p, new.reshape(keys.shape))
        ratio = jnp.exp(log_density(q, found) - log_density(p, found))
        # What is no number is kept: it would be tried for ever.
        is_kept = ~(rng.uniform(kept.reshape(keys.shape)) < ratio)
        value = jnp.where(done, value, found)
        return number + 1, value, done | is_kept | ~wanted

    start = (
        jnp.zeros((), jnp.int32),
        jnp.zeros(keys.shape),
        jnp.zeros(keys.shape, bool),
    )
    return jax.lax.while_loop(lambda state: ~state[2].all(), turn, start)[1]
