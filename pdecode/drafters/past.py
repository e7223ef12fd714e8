"""A draft layer over what is committed: its cache, and its answer at the root.

The layer's slot t holds token t and the target's feature of position t - 1, which is
known when the token is. Token 0 has no feature before it; its slot is seen by nobody
but the first draft of a row that is no longer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    DraftLayer,
    Model,
    Params,
    Prefix,
    Prompt,
    Query,
    Round,
    SlotRun,
    Visibility,
)

__all__ = ["FeatureState", "init", "observe", "pairs", "store"]


class FeatureState(NamedTuple):
    """The slots before `first` hold committed tokens and true features."""

    cache: Cache
    first: Array  # int32 [B]  slot of the first of `features`
    features: Array  # [B, 1 + D, E]  the target's before each token not stored yet


def init(
    model: Model,
    layer: DraftLayer,
    max_depth: int,
    own: Params,
    target: Params,
    prompt: Prompt,
    prefix: Prefix,
    output,
) -> FeatureState:
    """The prompt's pairs but the last in the cache; that one waits."""
    batch, length = prefix.tokens.shape
    room = length + 2 * max_depth + 2
    cache = layer.init_cache(prompt, caches.num_slots(room))
    last = prompt.lengths - 1
    if output is None:
        dtype = model.head(target).weight.dtype
        before = jnp.zeros((batch, 1, layer.width), dtype)
    else:
        # tokens a b c: b stands beside the feature at a, and nothing beside a
        features = layer.read(own, output)
        before = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))
        if layer.begin is not None:
            cache = layer.begin(own, target, prompt.tokens, features, cache)
        else:
            query = pairs(prompt.tokens[:, :-1], jnp.zeros_like(last), before[:, :-1])
            _, cache = layer.apply(own, target, query, cache)
    waiting = jnp.take_along_axis(before, last[:, None, None], 1)
    waiting = jnp.pad(waiting, ((0, 0), (0, max_depth), (0, 0)))
    return FeatureState(cache, last, waiting)


def observe(
    layer: DraftLayer, own: Params, state: FeatureState, round: Round
) -> FeatureState:
    """The target's features at the root and at each accepted node wait."""
    lanes = jnp.pad(round.path, ((0, 0), (1, 0)))  # the root's lane is 0
    output = jax.tree.map(
        lambda leaf: jnp.take_along_axis(leaf, lanes[..., None], 1), round.output
    )
    features = layer.read(own, output)
    return FeatureState(
        state.cache, round.prefix.length, features.astype(state.features.dtype)
    )


def store(
    layer: DraftLayer, own: Params, target: Params, state: FeatureState, prefix: Prefix
) -> tuple[Array, Cache, Array]:
    """Stores what was committed: the answer [B, 1, E] at the root, cache, how many."""
    size = state.features.shape[1]
    place = state.first[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    tokens = jnp.take_along_axis(prefix.tokens, last, 1)
    query = pairs(tokens, state.first, state.features)
    answer, cache = layer.apply(own, target, query, state.cache)
    lane = jnp.clip(prefix.length - 1 - state.first, 0, size - 1)
    answer = jnp.take_along_axis(answer, lane[:, None, None], 1)
    return answer, cache, prefix.length - state.first


def pairs(tokens: Array, first: Array, features: Array) -> Query:
    """Tokens [B, Q] from slot `first` on beside the features before them, stored."""
    place = first[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    # What stands behind the row's text is written over before it is seen.
    visible = Visibility(jnp.minimum(place, 1), place + 1)
    return Query(tokens, place, SlotRun(first), visible, features)
