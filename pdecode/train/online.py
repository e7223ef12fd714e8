"""A drafter that follows its target while both are in use.

Where the target is being trained, what it generates is what its drafter should learn:
after each round of decoding the drafter takes a few steps towards the target's own laws
on the texts just made, weighted by their rewards (ReSpec, 2025, arXiv:2510.26475).
Drafts stay lossless throughout; only how many are accepted changes. Deviation: the
target's laws come from one more call over each text, not from the verifying calls.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdecode.contracts import Generation, Params
from pdecode.models.config import Config
from pdecode.train import losses, passes


class Follower(NamedTuple):
    """A drafter in training."""

    params: Params
    optimizer: Any  # state of optax


def begin(params: Params, optimizer: optax.GradientTransformation) -> Follower:
    """A drafter as it is now."""
    return Follower(params, optimizer.init(params))


def weights(rewards: Array, limit: float = 1.0) -> Array:
    """float32 [B] from rewards [B]: cut to [0, limit], of mean 1; zero if all are."""
    cut = jnp.clip(rewards.astype(jnp.float32), 0, limit)
    mean = cut.mean()
    return jnp.where(mean > 0, cut / jnp.where(mean > 0, mean, 1), 0)


def follow(
    follower: Follower,
    optimizer: optax.GradientTransformation,
    configs: tuple[Config, Config],
    target_params: Params,
    tokens: Array,
    scored: Array,
    weight: Array,
) -> tuple[Follower, Array]:
    """The drafter after one step, and before it the nats of KL(target || drafter).

    `configs` are of target and drafter; tokens int32 [B, L] are texts, of which
    `scored` (see there) are learned; `weight` float32 [B] is a row's share. Call it
    inside `jax.jit`, with optimizer and configs static.
    """
    target, drafter = configs
    wanted = jax.lax.stop_gradient(_log_laws(target, target_params, tokens))

    def loss(params):
        found = _log_laws(drafter, params, tokens)
        nats = (jnp.exp(wanted) * (wanted - found)).sum(-1)
        share = weight[:, None] * scored[:, 1:]
        return (share * nats).sum() / jnp.maximum(scored[:, 1:].sum(), 1)

    value, slope = jax.value_and_grad(loss)(follower.params)
    change, state = optimizer.update(slope, follower.optimizer, follower.params)
    return Follower(optax.apply_updates(follower.params, change), state), value


def scored(generation: Generation) -> Array:
    """bool [B, L]: what was generated, from the prompt's end to the row's."""
    place = jnp.arange(generation.tokens.shape[1])[None]
    end = generation.start + generation.lengths
    return (place >= generation.start[:, None]) & (place < end[:, None])


def _log_laws(config: Config, params: Params, tokens: Array) -> Array:
    """Log-law [B, L - 1, V] of every token but the first, given those before it."""
    hidden = passes.hidden(passes.of_decoding(config), params, tokens)
    return jax.nn.log_softmax(losses.logits_of(config, params, hidden[:, :-1]))
