"""Jakiro's draft layer: two experts, mixed two ways, guess two features at once.

Huang et al., 2025, arXiv:2502.06282. EAGLE's layer (arXiv:2401.15077) with two MLPs
behind its attention and a router of four numbers. The first pair of these, as shares,
mixes the experts for the feature of the token's own position; the second pair takes
what the larger share has more than the smaller one, which is for the position after:
siblings of one level and their children no longer come from one state.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache, DraftLayer, Params, Query
from pdecode.models import draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config


def init(config: Config, key: Array) -> Params:
    """Random float32 parameters of a layer for a target of `config`."""
    own, keys = _own(config), jax.random.split(key, 4)
    params = draft_layers.init(config, keys[0])
    block, stream = params["layer_0"], jnp.zeros((1, 1, config.width), own.dtype)
    del block["mlp"]
    for expert in range(2):
        made = parts.Mlp(own).init(keys[1 + expert], stream)["params"]
        block[f"expert_{expert}"] = made
    block["router"] = _router(own).init(keys[3], stream)["params"]
    return params


@functools.cache
def make_layer(config: Config) -> DraftLayer:
    """The record of a layer for a target of `config`; equal ones are one object.

    Its features are [B, Q, 2 E], the position's own and the next one's; what it is fed
    is the first E of them, or a target's feature [B, Q, E].
    """
    own = _own(config)
    base = draft_layers.make_layer(config)
    head = transformer.make_model(own).head
    return base._replace(
        apply=functools.partial(_apply, own),
        law=lambda params, target, found: (found[..., : config.width], head(target)),
        ahead=lambda params, target, found: (found[..., config.width :], head(target)),
        name=f"two experts of {config.name}",
    )


def _own(config: Config) -> Config:
    """Experts are as wide as the stream, as released."""
    own = draft_layers.own_config(config)
    return dataclasses.replace(own, mlp_width=config.width)


def _router(own: Config):
    return parts.dense(own, 4, False, "router")


def _apply(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    assert query.extra is not None, "a lane has the feature before it"
    query = query._replace(extra=query.extra[..., : own.width])
    stream, cache = draft_layers.opened(own, params, target, query, cache)
    block = params["layer_0"]
    normed = parts.applied(parts.norm(own), block["mlp_norm"], stream)
    scores = parts.applied(_router(own), block["router"], normed).astype(jnp.float32)
    first, second = (
        parts.applied(parts.Mlp(own), block[f"expert_{expert}"], normed)
        for expert in range(2)
    )
    mixed = jax.nn.softmax(scores[..., :2]).astype(stream.dtype)
    apart = jax.nn.softmax(scores[..., 2:]).astype(stream.dtype)
    now = mixed[..., :1] * first + mixed[..., 1:] * second
    gap = apart[..., :1] * first - apart[..., 1:] * second
    gap = jnp.where(scores[..., 2:3] > scores[..., 3:], gap, -gap)
    return jnp.concatenate([stream + now, stream + gap], -1), cache
