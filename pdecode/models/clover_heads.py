"""Clover's heads: what was drafted passes on from head to head by a regressive gate.

Xiao et al., 2024, arXiv:2405.00263 and 2408.00264 (Clover-2). The gate adds to a state,
head by head of attention, the value of a token's embedding times the cosine of the
state's query and the embedding's key. The augmenting block puts one gate with the root
on the target's state, and causal layers and a norm behind; one gate and one map of
[state; embedding] serve all heads but the first, which has a map of its own. Head and
embedding are the target's. Gates begin as no change and maps as what passes the state
on, so that every head begins as one prediction (the paper does not say).

{"past": {"gate", "layer_0", ..., "norm"}, "gate", "first", "next", "norm"}.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache, ChainedHeads, Head, Params, Query
from pdecode.models import draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config


def init(
    config: Config, key: Array, num_layers: int, target: Params | None = None
) -> Params:
    """Float32 parameters of heads for a target of `config`.

    The layers are copies of the last one of `target`, as the paper has it; without it
    random, and no change.
    """
    own, width = draft_layers.own_config(config), config.width
    keys = jax.random.split(key, num_layers + 2)
    if target is None:
        blocks = [draft_layers.quiet_block(own, each) for each in keys[2:]]
    else:
        blocks = [target[f"layer_{config.num_layers - 1}"]] * num_layers
    norm = _norm(config)
    layers = {f"layer_{index}": each for index, each in enumerate(blocks)}
    return {
        "past": {"gate": _gate(config, keys[0]), **layers, "norm": norm},
        "gate": _gate(config, keys[1]),
        "first": {"kernel": jnp.eye(width, dtype=jnp.float32)},
        "next": {"kernel": jnp.eye(2 * width, width, dtype=jnp.float32)},
        "norm": norm,
    }


@functools.cache
def make_heads(config: Config, num_heads: int, num_layers: int = 2) -> ChainedHeads:
    """The record of heads for a target of `config`; equal ones are one object.

    ValueError for a width that the target's heads do not divide.
    """
    if num_heads < 1 or num_layers < 1:
        raise ValueError(f"{num_heads=} and {num_layers=} must be at least 1")
    if config.width % config.num_heads:
        raise ValueError(
            f"width={config.width} of {config.name} is no multiple of its "
            f"{config.num_heads} heads, which the gates have too"
        )
    own = draft_layers.own_config(config, num_layers)
    augmented = functools.partial(_augmented, own)
    name = f"augmenting block of {config.name}"
    past = draft_layers.before_heads(own, augmented, name)
    apply = functools.partial(_apply, own)
    return ChainedHeads(num_heads, apply, "Clover's heads", past)


def gated(config: Config, gate: Params, state: Array, token: Array) -> Array:
    """`state` [..., E] and what the embedding `token` [..., E] adds to it."""
    normed = parts.applied(parts.norm(config), gate["norm"], state)

    def heads(name: str, x: Array) -> Array:
        return (x @ gate[name]["kernel"]).reshape(*x.shape[:-1], config.num_heads, -1)

    query, key = heads("query", normed), heads("key", token)
    # Of a row of zeros, as padded vocabularies have them, the gradient is zero as well.
    size = (query * query).sum(-1) * (key * key).sum(-1)
    cosine = (query * key).sum(-1) * jax.lax.rsqrt(jnp.maximum(size, 1e-12))
    return state + (cosine[..., None] * heads("value", token)).reshape(state.shape)


def _gate(config: Config, key: Array) -> Params:
    width, (first, second) = config.width, jax.random.split(key)
    start = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    return {
        "norm": _norm(config),
        "query": {"kernel": start(first, (width, width), jnp.float32)},
        "key": {"kernel": start(second, (width, width), jnp.float32)},
        "value": {"kernel": jnp.zeros((width, width), jnp.float32)},
    }


def _norm(config: Config) -> Params:
    stream = jnp.zeros((1, config.width), jnp.float32)
    return parts.norm(config).init(jax.random.key(0), stream)["params"]


def _augmented(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """States [B, Q, E]; without a cache the call's own lanes are the slots."""
    assert query.extra is not None, "a lane has the feature before it"
    token = _table(own, target)[query.tokens]
    stream = gated(own, params["gate"], query.extra.astype(token.dtype), token)
    caches = [None] * own.num_layers if cache is None else list(cache)
    for layer in range(own.num_layers):
        block = params[f"layer_{layer}"]
        stream, caches[layer] = draft_layers.through(
            own, block, stream, query, caches[layer]
        )
    return parts.applied(parts.norm(own), params["norm"], stream), tuple(caches)


def _apply(
    own: Config, params: Params, target: Params, index: int, hidden: Array, tokens
) -> tuple[Array, Head]:
    """The root, the first of `tokens`, is in `hidden` already."""
    token, state = _table(own, target)[tokens], hidden
    for nth in range(1, index + 1):
        state = gated(own, params["gate"], state, token[..., nth, :])
    if index == 0:
        value = state @ params["first"]["kernel"]
    else:
        joined = jnp.concatenate([state, token[..., index, :]], -1)
        value = joined @ params["next"]["kernel"]
    value = parts.applied(parts.norm(own), params["norm"], value)
    return value.astype(hidden.dtype), transformer.make_model(own).head(target)


def _table(own: Config, target: Params) -> Array:
    model = transformer.make_model(own)
    assert model.embedding is not None, "of every transformer"
    return model.embedding.table(target)
