"""From noise to a code: the flow that a law over the codes of a codebook defines.

With noise e from N(0, I) and a code c from the law, x_t = (1 - t) e + t c runs from one
to the other; the mean velocity of those that pass a point is a flow that carries
N(0, I) to the law (flow matching: Lipman et al., 2023, arXiv:2210.02747). So it gives
every noise vector one code, and each code as much noise as it has probability: a draw
that is a function of the noise, as distilled decoding learns it (Liu et al., 2024,
arXiv:2412.17153).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["code_of", "mean_code", "velocity"]

_LAST = 1e-3  # what is left of the noise where the flow is read


def mean_code(x: Array, time: Array | float, log_law: Array, codes: Array) -> Array:
    """Where the flow is bound for: the mean code [D] of those that pass `x` at `time`.

    x [D], log_law [V], codes [V, D]; the weights of codes are
    p_j exp(-|x - t c_j|^2 / (2 (1 - t)^2)).
    """
    return jax.nn.softmax(_log_weights(x, 1 - time, log_law, codes)) @ codes


def velocity(x: Array, time: Array | float, log_law: Array, codes: Array) -> Array:
    """dx/dt [D] at a time in [0, 1)."""
    return (mean_code(x, time, log_law, codes) - x) / (1 - time)


def code_of(
    noise: Array, log_law: Array, codes: Array, *, num_steps: int = 64
) -> Array:
    """The code that the flow carries `noise` to, int32 [...].

    noise float [..., D] from N(0, I), log_law [..., V], codes [V, D], all different. In
    one dimension the flow keeps the order of what it carries, so that it is the
    quantile of the law at the share of noise below; in more it is followed in
    `num_steps` steps, and the law is as exact as those are (tests/test_flows.py: within
    0.01 at 64).
    """
    carried = _by_quantile
    if codes.shape[1] > 1:
        carried = functools.partial(_by_steps, num_steps)
    shape = noise.shape[:-1]
    flat = noise.reshape(-1, noise.shape[-1]), log_law.reshape(-1, log_law.shape[-1])
    return jax.vmap(carried, (0, 0, None))(*flat, codes).reshape(shape)


def _log_weights(x: Array, left: Array | float, log_law: Array, codes: Array) -> Array:
    """Unnormalised [V]; `left` is 1 - t, how much of x is noise."""
    apart = jnp.square(x[None] - (1 - left) * codes).sum(-1)
    return log_law - apart / (2 * left**2)


def _by_quantile(noise: Array, log_law: Array, codes: Array) -> Array:
    order = jnp.argsort(codes[:, 0])
    share = jnp.cumsum(jnp.exp(log_law[order] - log_law.max()))
    # Below 1, so that what follows the last possible code is never reached.
    place = jnp.minimum(jax.scipy.stats.norm.cdf(noise[0]), 1 - 2.0**-24)
    return order[(share / share[-1] <= place).sum()].astype(jnp.int32)


def _by_steps(num_steps: int, noise: Array, log_law: Array, codes: Array) -> Array:
    """Second order in s = -log(1 - t), where dx/ds = mean_code - x.

    A mean code that stands still is then followed exactly, as all are near the end.
    """
    rest = _LAST ** (1 / num_steps)  # of 1 - t after a step
    step = -jnp.log(rest)
    late = (step - 1 + rest) / step  # weight of the mean at the step's end

    def turn(x: Array, number: Array):
        left = rest**number
        here = mean_code(x, 1 - left, log_law, codes)
        ahead = mean_code(here + (x - here) * rest, 1 - left * rest, log_law, codes)
        return rest * x + (1 - rest - late) * here + late * ahead, None

    x, _ = jax.lax.scan(turn, noise, jnp.arange(num_steps, dtype=noise.dtype))
    return jnp.argmax(_log_weights(x, _LAST, log_law, codes)).astype(jnp.int32)
