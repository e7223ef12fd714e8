"""Jacobi guesses that begin as noise in the space of embeddings and are denoised."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import rng
from pdecode.contracts import Drafter, Model, Prefix, Sampling
from pdecode.drafters import guesses, iterates

__all__ = ["Noisy", "denoised", "schedule", "statistics", "stepped"]

# Of Karras' noise schedule.
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


class Noisy(NamedTuple):
    """Guesses, and how noisy the slot of each is."""

    guesses: Any  # of `iterates.iterate`; of a clean slot the token that stands there
    level: Array  # int32 [B, W]  0: clean
    noisy: Array  # [B, W, E]  what stands at a noisy slot, normalised
    mean: Array  # [E]  of the embeddings, and their deviation, which normalise
    scale: Array  # [E]


def schedule(num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha, sigma float32 [num_levels + 1]: level k is alpha * clean + sigma * noise.

    Karras' levels of noise for a signal of variance 1, scaled so that what stands at a
    slot has variance 1 too. Level 0 is clean.
    """
    share = np.linspace(0, 1, num_levels) if num_levels > 1 else np.ones(num_levels)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    noise = np.concatenate([[0.0], (low + share * (high - low)) ** RHO])
    alpha = 1 / np.sqrt(1 + noise**2)
    return alpha.astype(np.float32), (noise * alpha).astype(np.float32)


def stepped(noisy: Array, clean: Array, level: Array, num_levels: int) -> Array:
    """`noisy` [..., E] one level down towards `clean` (a step of DDIM)."""
    alpha, sigma = (jnp.asarray(each) for each in schedule(num_levels))
    here, below = jnp.maximum(level, 1), jnp.maximum(level, 1) - 1
    share = sigma[below] / sigma[here]
    left = alpha[below] - alpha[here] * share
    return share[..., None] * noisy + left[..., None] * clean


def denoised(
    model: Model,
    window: int,
    sampling: Sampling,
    num_levels: int,
    *,
    transport: guesses.Transport,
) -> Drafter:
    """`iterates.iterate` whose fresh guesses are `num_levels` calls away from a token.

    A slot that enters the window is noise. Each call predicts its token from the slots
    before it, and the slot moves a level towards that token's embedding; the last move
    ends there, and from then on it is a guess as any other, drawn from the law that is
    its q. Only clean slots are proposed, so nothing behind a noisy one is accepted, and
    what is accepted was read as it is committed: lossless, whatever the model makes of
    noise. With no levels it is `iterate`. Raises ValueError for a model that does not
    say what its embeddings are, where there are levels.
    """
    # A model that is not causal has another error coming.
    is_lacking = model.embedding is None and model.predicts == "next"
    if num_levels > 0 and is_lacking:
        raise ValueError(
            f"{model.name} does not say what its embeddings are, and {num_levels=} "
            "levels of noise are between them: take a model with an embedding, or none"
        )
    base = iterates.iterate(model, window, sampling, transport=transport)
    if num_levels == 0:
        return base
    return base._replace(
        init=functools.partial(_init, model, base, num_levels),
        propose=functools.partial(_propose, model, base),
        observe=functools.partial(_observe, model, base, num_levels),
    )


def _init(model, base: Drafter, num_levels: int, params, keys, prompt, prefix, output):
    guesses = base.init(params, keys, prompt, prefix, output)
    level = jnp.full(guesses.tokens.shape, num_levels, jnp.int32)
    noisy = _noise(model, keys, prefix, level.shape[1])
    return Noisy(guesses, level, noisy, *statistics(model, params["model"]))


def _propose(model: Model, base: Drafter, params, keys, state: Noisy, prefix: Prefix):
    draft, guesses = base.propose(params, keys, state.guesses, prefix)
    is_noisy = (state.level > 0)[..., None]
    # An absent node is fed as id 0, and its lane should read what stands there.
    stands = state.noisy * state.scale[None, None] + state.mean[None, None]
    zeroth = _rows(model, params["model"], jnp.zeros((1, 1), jnp.int32))
    extra = jnp.where(is_noisy, stands - zeroth, 0)
    draft = draft._replace(
        tokens=jnp.where(is_noisy[..., 0], -1, draft.tokens),
        q=None if draft.q is None else jnp.where(is_noisy, 0, draft.q),
        extra=extra,
    )
    return draft, state._replace(guesses=guesses)


def _observe(
    model: Model, base: Drafter, num_levels: int, params, keys, state: Noisy, round
) -> Noisy:
    window = state.level.shape[1]
    # To the iteration a noisy slot is a guess without a law: it is drawn anew.
    tokens = jnp.where(state.level > 0, state.guesses.tokens, round.draft.tokens)
    seen = round._replace(draft=round.draft._replace(tokens=tokens))
    guesses = base.observe(params, keys, state.guesses, seen)

    node = iterates.old_nodes(round, window)
    is_old = node < window
    lane = jnp.minimum(node, window - 1)
    level = jnp.take_along_axis(state.level, lane, 1)
    clean = _rows(model, params["model"], guesses.tokens)
    clean = (clean - state.mean[None, None]) / state.scale[None, None]
    moved = jnp.take_along_axis(state.noisy, lane[..., None], 1)
    moved = stepped(moved, clean, level, num_levels)
    length = round.prefix.length + round.num_accepted + 1
    fresh = _noise(model, keys, round.prefix._replace(length=length), window)
    return state._replace(
        guesses=guesses,
        level=jnp.where(is_old, jnp.maximum(level - 1, 0), num_levels),
        noisy=jnp.where(is_old[..., None], moved, fresh).astype(state.noisy.dtype),
    )


def statistics(model: Model, params) -> tuple[Array, Array]:
    """Mean and deviation float32 [E] of each channel of the embeddings.

    The model must say what they are.
    """
    assert model.embedding is not None, "checked where the drafter is made"
    table = model.embedding.table(params).astype(jnp.float32)
    deviation = table.std(0)
    return table.mean(0), jnp.where(deviation > 0, deviation, 1)


def _rows(model: Model, params, ids: Array) -> Array:
    """float32 [.., E]: the embeddings of `ids`."""
    assert model.embedding is not None, "checked where the drafter is made"
    return model.embedding.table(params)[ids].astype(jnp.float32)


def _noise(model: Model, keys: Array, prefix: Prefix, window: int) -> Array:
    """Gaussian noise [B, W, E] of the slots behind `prefix`."""
    assert model.embedding is not None, "checked where the drafter is made"
    root = prefix.length - 1
    place = prefix.length[:, None] + jnp.arange(window, dtype=jnp.int32)[None]
    keys = rng.noise(keys, rng.DRAFT, place, round=root, index=jnp.ones_like(place))
    width = model.embedding.width
    draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (width,))))
    return draw(keys)
