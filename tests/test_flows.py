"""From noise to codes: the flow, its law, and what a student of it decodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode.rules import flows

CODES = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [0.9, 0.3], [0.0, 0.0]])
LAW = jnp.array([0.1, 0.3, 0.25, 0.15, 0.2])
LINE = jnp.array([[0.3], [-1.0], [2.0], [0.5], [0.0]])


def carried(codes, count, seed=0, **more):
    """(noise [N, D], code of each) under LAW."""
    noise = jax.random.normal(jax.random.key(seed), (count, codes.shape[1]))
    law = jnp.broadcast_to(jnp.log(LAW), (count, len(LAW)))
    run = jax.jit(functools.partial(flows.code_of, **more))
    return np.asarray(noise), np.asarray(run(noise, law, codes))


def density(x, time, law, codes):
    """Of x_t = (1 - t) e + t c, in one dimension."""
    left = 1 - time
    apart = (x[:, None] - time * codes[None, :, 0]) / left
    bell = np.exp(-0.5 * apart**2) / (left * np.sqrt(2 * np.pi))
    return (law[None] * bell).sum(1)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.8])
def test_the_velocity_moves_the_density_as_time_does(time):
    """d density / dt = -d (density * velocity) / dx, by differences in float64."""
    law, codes = np.asarray(LAW, np.float64), np.asarray(LINE, np.float64)
    x, dx, dt = np.linspace(-4, 4, 801), 0.01, 1e-5

    def flux(shift):
        speed = jax.vmap(flows.velocity, (0, None, None, None))(
            jnp.asarray(x + shift)[:, None], time, jnp.log(LAW), LINE
        )
        return density(x + shift, time, law, codes) * np.asarray(speed)[:, 0]

    later = density(x, time + dt, law, codes) - density(x, time - dt, law, codes)
    along = (flux(dx) - flux(-dx)) / (2 * dx)
    np.testing.assert_allclose(later / (2 * dt), -along, atol=5e-3)
    # The control: bound for the codes' plain mean.
    still = density(x, time, law, codes) * ((law @ codes)[0] - x) / (1 - time)
    away = np.gradient(still, dx)
    assert np.abs(later / (2 * dt) + away).max() > 0.05


def test_each_code_has_as_much_noise_as_it_has_probability():
    noise, codes = carried(CODES, 20_000)
    found = np.bincount(codes, minlength=5) / len(codes)
    assert np.abs(found - np.asarray(LAW)).max() < 0.01
    # The control: the nearest code, which knows of no law.
    apart = np.square(noise[:, None] - np.asarray(CODES)[None]).sum(-1)
    near = np.bincount(apart.argmin(1), minlength=5) / len(codes)
    assert np.abs(near - np.asarray(LAW)).max() > 0.05


def test_in_one_dimension_the_flow_is_the_quantile():
    """Which keeps order: no map to this law moves noise less."""
    noise, codes = carried(LINE, 20_000)
    found = np.bincount(codes, minlength=5) / len(codes)
    assert np.abs(found - np.asarray(LAW)).max() < 0.012
    heights = np.asarray(LINE)[codes, 0][np.argsort(noise[:, 0])]
    assert (np.diff(heights) >= 0).all()
    by_steps = jax.jit(
        jax.vmap(functools.partial(flows._by_steps, 256), (0, None, None))
    )(noise[:4000], jnp.log(LAW), LINE)
    assert (np.asarray(by_steps) == codes[:4000]).mean() > 0.999


def test_what_has_no_probability_is_never_carried_to():
    law = jnp.array([0.5, 0.0, 0.0, 0.5, 0.0])
    noise = jnp.linspace(-9, 9, 999)
    log_law = jnp.broadcast_to(jnp.maximum(jnp.log(law), -1e9), (999, 5))
    for codes in (LINE, CODES):
        own = jnp.broadcast_to(noise[:, None], (999, codes.shape[1]))
        found = np.asarray(jax.jit(flows.code_of)(own, log_law, codes))
        assert set(found) == {0, 3}
