"""A drafter that follows a drifting target, and one that is left behind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdecode import methods, prompts
from pdecode.decode import run
from pdecode.models import transformer
from pdecode.train import online

CONFIG = transformer.Config(
    vocab_size=8, width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    mlp_width=16, max_positions=32,
)  # fmt: skip
MODEL = transformer.make_model(CONFIG)
PAIR = (MODEL, MODEL)
OPTIMIZER = optax.adam(1e-2)
PROMPT = prompts.from_rows([[i % 8, (3 * i) % 8] for i in range(32)], max_new_tokens=14)


def sharp(seed, scale=2.0):
    """Random parameters, far enough from zero for laws that differ."""
    params = transformer.init(CONFIG, jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf * scale, params)


@functools.partial(jax.jit, static_argnums=0)
def follow(optimizer, follower, target, out, weight):
    scored = online.scored(out)
    both = (CONFIG, CONFIG)
    return online.follow(follower, optimizer, both, target, out.tokens, scored, weight)


def between(first, last, share):
    """Parameters on the way from `first` to `last`: a target in training."""
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, first, last)


def decode(target, drafter, seed):
    """(generation, drafted tokens kept a call)."""
    out, stats = run(
        methods.speculative_sampling, PAIR, {"model": target, "drafter": drafter},
        PROMPT, jax.random.key(seed), knobs={"temperature": 1.0}, max_new_tokens=14,
        num_draft=3,
    )  # fmt: skip
    calls = np.asarray(stats.num_calls).sum()
    return out, (np.asarray(stats.num_committed).sum() - calls) / calls


@pytest.mark.thorough
def test_a_drafter_that_follows_keeps_what_one_left_behind_loses():
    first, last = sharp(0), sharp(1)
    frozen, follower = first, online.begin(first, OPTIMIZER)
    even = jnp.ones(len(PROMPT.lengths))
    left, kept = [], []
    for step, share in enumerate(np.linspace(0, 0.5, 4)):
        target = between(first, last, share)
        out, accepted = decode(target, follower.params, step)
        kept.append(accepted)
        left.append(decode(target, frozen, step)[1])
        for _ in range(30):
            follower, _ = follow(OPTIMIZER, follower, target, out, even)
    kept.append(decode(target, follower.params, 9)[1])
    left.append(decode(target, frozen, 9)[1])
    # At first the target itself drafts: 4 + 4 + 4 + 2 tokens of 14 in four calls.
    assert left[0] == kept[0] == 2.5, (kept, left)
    assert left[-1] < 0.5, (kept, left)
    assert kept[-1] > left[-1] + 0.5, (kept, left)


def test_no_weight_moves_nothing_and_weights_are_shares():
    params, target = sharp(0), sharp(1)
    out, _ = decode(target, params, 0)
    plain = optax.sgd(0.1)
    none = online.weights(jnp.zeros(len(PROMPT.lengths)))
    after, value = follow(plain, online.begin(params, plain), target, out, none)
    assert value == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    some = online.weights(jnp.array([0.0, 2.0, 0.5, -1.0]), limit=1.0)
    np.testing.assert_allclose(some, np.array([0, 1, 0.5, 0]) * 4 / 1.5)
    scored = np.asarray(online.scored(out))
    assert not scored[:, :2].any() and scored.sum() == np.asarray(out.lengths).sum()


def test_the_loss_is_the_divergence_of_the_two_laws():
    params, target = sharp(0), sharp(1)
    out, _ = decode(target, params, 0)
    plain = optax.sgd(0.0)
    even = jnp.ones(len(PROMPT.lengths))
    same = online.begin(target, plain)
    assert abs(follow(plain, same, target, out, even)[1]) < 1e-5
    _, value = follow(plain, online.begin(params, plain), target, out, even)
    mine, its = (
        np.asarray(online._log_laws(CONFIG, p, out.tokens)) for p in (params, target)
    )
    nats = (np.exp(its) * (its - mine)).sum(-1)[np.asarray(online.scored(out))[:, 1:]]
    np.testing.assert_allclose(value, nats.mean(), rtol=1e-4)
