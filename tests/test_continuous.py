"""Continuous speculative decoding: the law is the target's, whatever drafts.

Kolmogorov-Smirnov over 1e5 rows: D sqrt(n) has mean 0.8687 and standard deviation
0.2603 where the law is right; more than three of these above it fails.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import rng
from pdecode.families import continuous
from pdecode.rules import densities
from pdecode.rules.densities import Gaussian

ROWS = 100_000
LIMIT = 0.8687 + 3 * 0.2603


def chain(slope, shift, std):
    """Each value is N(slope * the one before + shift, std); before the first is 0."""

    def laws(values, places):
        before = jnp.take_along_axis(values, jnp.maximum(places - 1, 0), 1)
        before = jnp.where(places > 0, before, 0.0)
        return Gaussian(slope * before + shift, jnp.full(places.shape, std))

    return laws


TARGET, DRAFTER = chain(0.8, 0.5, 1.0), chain(0.3, -0.2, 1.4)


def draw(num_values, num_draft, drafter=DRAFTER, seed=0):
    keys = rng.row_keys(jax.random.key(seed), jnp.arange(ROWS))
    made = functools.partial(
        continuous.speculative, TARGET, drafter, num_values=num_values,
        num_draft=num_draft,
    )  # fmt: skip
    return jax.tree.map(np.asarray, jax.jit(made)(keys))


def statistic(values, mean, std):
    """D sqrt(n) of `values` against a Gaussian."""
    ordered = np.sort((values - mean) / std / math.sqrt(2))
    law = 0.5 + 0.5 * np.asarray(jax.scipy.special.erf(ordered), np.float64)
    step = np.arange(len(values) + 1) / len(values)
    gap = max(np.abs(law - step[1:]).max(), np.abs(law - step[:-1]).max())
    return gap * math.sqrt(len(values))


def moments(count):
    """Mean and covariance of the target's chain, analytically."""
    mean, cov = np.zeros(count), np.zeros((count, count))
    for i in range(count):
        mean[i] = 0.8 * (mean[i - 1] if i else 0) + 0.5
        cov[i, i] = 0.64 * (cov[i - 1, i - 1] if i else 0) + 1
        for j in range(i):
            cov[i, j] = cov[j, i] = 0.8 ** (i - j) * cov[j, j]
    return mean, cov


def test_one_value_has_the_targets_law_and_refuses_as_often_as_they_differ():
    made = draw(1, 1)
    assert statistic(made.values[:, 0], 0.5, 1.0) < LIMIT
    assert (made.num_calls == 1).all()
    # Of equal spreads d apart, min(p, q) integrates to erfc(d / sqrt 8).
    same = draw(1, 1, chain(0.0, -0.5, 1.0))
    assert statistic(same.values[:, 0], 0.5, 1.0) < LIMIT
    share = math.erfc(1 / math.sqrt(8))
    error = math.sqrt(share * (1 - share) / ROWS)
    assert abs(same.num_accepted.mean() - share) < 4 * error
    # A drafter that is the target is never refused.
    assert (draw(1, 1, TARGET).num_accepted == 1).all()


def distance(made):
    """The worst of the marginals' statistics, and of the moments' errors in sd."""
    mean, cov = moments(3)
    worst = max(
        statistic(made.values[:, i], mean[i], math.sqrt(cov[i, i])) for i in range(3)
    )
    found = made.values - mean
    errors = np.abs(found.mean(0)) / np.sqrt(np.diag(cov) / ROWS)
    products = found[:, :, None] * found[:, None]
    spread = products.std(0) / math.sqrt(ROWS)
    return worst, max(errors.max(), (np.abs(products.mean(0) - cov) / spread).max())


@pytest.mark.parametrize(
    "num_draft",
    [
        pytest.param(1, marks=pytest.mark.thorough),
        2,
        pytest.param(3, marks=pytest.mark.thorough),
    ],
)
def test_a_chain_has_the_targets_joint_law(num_draft):
    made = draw(3, num_draft)
    worst, errors = distance(made)
    assert worst < LIMIT and errors < 4.5
    assert (made.num_calls <= 3).all() and made.num_calls.mean() < 2.9


WRONG = {
    # A variance where a standard deviation belongs.
    "variance": ("log_density", lambda law, x: -0.5 * jnp.square(
        (x - law.mean) / jnp.square(law.std)) - 2 * jnp.log(law.std)),
    # Densities flattened by an inner temperature of 42.
    "flattened": ("accepts", lambda p, q, x, keys: jnp.log1p(-rng.uniform(keys)) < (
        densities.log_density(p, x) - densities.log_density(q, x)) / 42),
    # A refusal answered by the target's own law.
    "no_residual": ("residual", lambda p, q, keys, wanted: densities.draw(p, keys)),
    # A refusal that gives up, and leaves a zero.
    "zeros": ("residual", lambda p, q, keys, wanted: jnp.where(
        wanted, 0.0, densities.draw(p, keys))),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "flattened" else pytest.mark.thorough)
        for name in WRONG
    ],
)
def test_what_the_released_code_does_is_another_law(name, monkeypatch):
    monkeypatch.setattr(densities, *WRONG[name])
    worst, errors = distance(draw(3, 2))
    assert worst > 2 * LIMIT or errors > 9


@pytest.mark.thorough
def test_values_behind_a_refusal_may_not_stay(monkeypatch):
    """Verification value by value keeps what was drafted behind one refused."""
    monkeypatch.setattr(continuous, "leading", lambda accepted: accepted.sum(1))
    worst, errors = distance(draw(3, 2))
    assert worst > 2 * LIMIT or errors > 9


def test_what_is_no_number_ends_and_too_few_are_refused():
    broken = densities.Gaussian(jnp.full((4, 1), jnp.nan), jnp.ones((4, 1)))
    keys = jax.random.split(jax.random.key(0), 4)[:, None]
    found = densities.residual(broken, broken, keys, jnp.ones((4, 1), bool))
    assert jnp.isnan(found).all()
    for sizes in ({"num_values": 0, "num_draft": 1}, {"num_values": 2, "num_draft": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            continuous.speculative(None, None, keys[:, 0], **sizes)
