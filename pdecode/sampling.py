"""The law a token is drawn from: bans, filters, one draw.

Everything here works on logits [..., V] that exist; `kernels.head` decides whether they
do. A rule that needs a law, a draw or an entropy takes it from here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Model, Sampling

BANNED = -1e30  # finite, so that 0 * log(0) and differences never make a NaN


def without_mask(model: Model, sampling: Sampling) -> Sampling:
    """`sampling` with the mask id of `model` banned, unless it is `undrawn` already."""
    if model.mask_id is None or model.mask_id in sampling.undrawn:
        return sampling
    banned = tuple(dict.fromkeys((model.mask_id, *sampling.banned)))
    return sampling._replace(banned=banned)


def law(raw: Array, sampling: Sampling) -> Array:
    """The sampled law [..., V] of raw logits; one-hot at temperature 0."""
    raw = ban(raw, sampling.undrawn)
    filtered = filter_logits(raw, sampling)
    hot = jax.nn.one_hot(jnp.argmax(raw, -1), raw.shape[-1], dtype=raw.dtype)
    soft = jax.nn.softmax(cooled(filtered, sampling))
    return jnp.where(jnp.asarray(sampling.temperature) > 0, soft, hot)


def sample(
    filtered: Array, temperature, keys: Array | Callable[[], Array] | None
) -> Array:
    """argmax(logits + T * gumbel) as int32 [...]; no keys: the argmax."""
    # Outside the branch, where its maximum serves the log-probabilities too.
    greedy = largest(filtered)[1]
    if keys is None:
        return greedy

    def drawn():
        places = keys() if callable(keys) else keys
        noise = rng.gumbel(places, filtered.shape[-1]).astype(filtered.dtype)
        return largest(filtered + temperature * noise)[1]

    # The noise is worth skipping at temperature 0: over a canvas it costs more than
    # the argmax. The predicate is one scalar, so this is no divergence between rows.
    return jax.lax.cond(jnp.asarray(temperature) > 0, drawn, lambda: greedy)


def categorical(probs: Array, keys: Array) -> Array:
    """One draw int32 [...] from probs [..., V] for keys [...]; zeros never win."""
    return choose(probs, rng.gumbel(keys, probs.shape[-1]))


def choose(probs: Array, gumbel: Array) -> Array:
    """`categorical` with its noise [..., V]; for noise drawn in one go."""
    log_probs = jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), BANNED)
    return largest(log_probs + gumbel.astype(probs.dtype))[1]


def ban(raw: Array, banned: tuple[int, ...]) -> Array:
    """Logits with the ids `banned` made impossible."""
    # Compared, not scattered: this melts into whatever reads the logits.
    ids = jax.lax.broadcasted_iota(jnp.int32, raw.shape, raw.ndim - 1)
    return jnp.where(among(ids, banned), BANNED, raw)


def among(ids: Array, few: tuple[int, ...]) -> Array:
    """Whether each of `ids`, of any shape, is one of `few`."""
    found = jnp.zeros(ids.shape, bool)
    for one in few:
        found |= ids == one
    return found


def filter_logits(raw: Array, sampling: Sampling) -> Array:
    """Logits with what top-k, top-p and min-p exclude made impossible.

    The filters look at the tempered law; the logits returned are not divided by the
    temperature.
    """
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        return raw
    order = jnp.argsort(-raw, -1)  # stable: ties by lowest id
    rank = jnp.argsort(order, -1)
    keep = jnp.ones(raw.shape, bool)
    if sampling.top_k is not None:
        keep &= rank < sampling.top_k
    probs = jax.nn.softmax(jnp.where(keep, cooled(raw, sampling), BANNED))
    if sampling.top_p is not None:
        nucleus = probs
        if sampling.is_top_p_first:
            nucleus = jax.nn.softmax(cooled(raw, sampling))
        descending = jnp.take_along_axis(nucleus, order, -1)
        before = jnp.cumsum(descending, -1) - descending
        keep &= jnp.take_along_axis(before, rank, -1) < sampling.top_p
    if sampling.min_p is not None:
        keep &= probs >= sampling.min_p * probs.max(-1, keepdims=True)
    keep |= rank == 0
    return jnp.where(keep, raw, BANNED)


def entropy(log_probs: Array) -> Array:
    """Entropy in nats over the last axis; impossible tokens add nothing."""
    probs = jnp.exp(log_probs)
    return -jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1)


def largest(values: Array) -> tuple[Array, Array]:
    """Maximum over the last axis and its lowest place, int32.

    Two plain reductions: on CPU that of `jnp.argmax` takes three times as long.
    """
    top = values.max(-1)
    places = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    last = values.shape[-1] - 1
    return top, jnp.where(values == top[..., None], places, last).min(-1)


def second_largest(values: Array) -> Array:
    """The largest over the last axis but one; the largest again if it is not alone."""
    top = values.max(-1, keepdims=True)
    is_alone = (values == top).sum(-1) == 1
    return jnp.where(
        is_alone, jnp.where(values < top, values, -jnp.inf).max(-1), top[..., 0]
    )


def cooled(raw: Array, sampling: Sampling) -> Array:
    """Logits over the temperature; as they are at temperature 0."""
    temperature = jnp.asarray(sampling.temperature, raw.dtype)
    safe = jnp.where(temperature > 0, temperature, 1.0)
    return raw / safe
