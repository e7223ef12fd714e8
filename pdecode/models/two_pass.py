"""ARPG's network: one pass encodes tokens, a second answers queries from that alone.

Li et al., 2025, arXiv:2503.10568. The first half of the layers is causal self-attention
over what is known. Its output makes keys and values once, shared by all layers of the
second half, where masks at any positions attend to them and not to each other. The
second half caches one layer's keys and values. A query costs half the layers in the
paper; here all lanes of a call run through both, and what is of no use is dropped.

Parameters are those of `transformer`, layers split in two: those of the second half
have no keys and values of their own, and "shared" makes them for all. Deviation: as the
configuration says, positions may be a learned table instead of two-dimensional rotary.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Output, Params, Prompt, Query, Visibility
from pdecode.kernels.attention import api as attention_kernel
from pdecode.models import layers as parts
from pdecode.models import transformer
from pdecode.models.config import Config


class Shared(nn.Module):
    """Keys and values [B, Hkv, Q, D] of the first pass, for all of the second."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, angles) -> tuple[Array, Array]:
        config = self.config
        x = parts.norm(config, "norm")(x)
        shape = (*x.shape[:2], config.num_kv_heads, config.head_dim)
        size = config.num_kv_heads * config.head_dim
        key = parts.dense(config, size, False, "key")(x).reshape(shape)
        value = parts.dense(config, size, False, "value")(x).reshape(shape)
        key = key if angles is None else parts.rotate(key, angles)
        return key.swapaxes(1, 2), value.swapaxes(1, 2)


class Cross(nn.Module):
    """One layer of the second pass: attention to given keys and values, and an MLP."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, angles, visible: Visibility, stored, fresh) -> Array:
        config = self.config
        normed = parts.norm(config, "attention_norm")(x)
        size = config.num_heads * config.head_dim
        query = parts.dense(config, size, False, "query")(normed)
        query = query.reshape(*x.shape[:2], config.num_heads, config.head_dim)
        query = query if angles is None else parts.rotate(query, angles)
        seen = attention_kernel.attention(
            query,
            stored[0],
            stored[1],
            visible,
            fresh[0],
            fresh[1],
            scale=config.head_dim**-0.5,
        )
        seen = seen.reshape(*x.shape[:2], size)
        x = x + parts.dense(config, config.width, False, "out")(seen)
        return x + parts.Mlp(config, name="mlp")(parts.norm(config, "mlp_norm")(x))


_PLAIN = {
    "qkv_bias": False, "out_bias": False, "qk_norm": False, "post_norms": False,
    "experts": None, "window": None, "query_scale": None, "attention_soft_cap": None,
}  # fmt: skip


def init(config: Config, key: Array) -> Params:
    """Random float32 parameters; `key` is consumed.

    ValueError, naming the field, for what the second pass does not have.
    """
    for field, value in _PLAIN.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"the two-pass network needs model.{field}={value!r}, not "
                f"{getattr(config, field)!r}"
            )
    if config.num_layers < 2:
        raise ValueError(
            f"the two-pass network needs model.num_layers={config.num_layers} to be at "
            "least 2: one for each pass"
        )
    key_whole, key_shared, *keys = jax.random.split(key, 2 + config.num_layers)
    params = transformer.init(config, key_whole)
    stream = jnp.zeros((1, 1, config.width), config.dtype)
    place = jnp.zeros((1, 1), jnp.int32)
    angles = _angles(config, place)
    made = Shared(config).init(key_shared, stream, angles)
    params["shared"] = made["params"]
    keys_values = jnp.zeros((1, config.num_kv_heads, 1, config.head_dim), config.dtype)
    pair = (keys_values, keys_values)
    for layer in range(config.num_layers // 2, config.num_layers):
        params[f"layer_{layer}"] = Cross(config).init(
            keys[layer], stream, angles, Visibility(place, place + 1), pair, pair
        )["params"]
    return params


@functools.cache
def make_model(config: Config) -> Model:
    """The decoder's view; equal configurations give the same object.

    Lanes that are not stored are queries: the second pass answers them. A stored lane's
    own output means nothing.
    """
    base = transformer.make_model(config)

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        # The first pass's layers, and the pair that the second shares.
        return base.init_cache(prompt, num_slots)[: config.num_layers // 2 + 1]

    def apply(params, query: Query, cache: Cache):
        stored = caches.is_stored(query.slots, query.tokens.shape, cache[0]["k"])
        return _run(config, params, query, ~stored, cache)

    return base._replace(init_cache=init_cache, apply=apply, encode=apply)


def forward(config: Config, params: Params, query: Query, is_query: Array) -> Output:
    """Whole sequences without a cache; `query.visible` has `among`, as a step has."""
    return _run(config, params, query, is_query, None)[0]


def _run(config, params, query: Query, is_query: Array, cache):
    embedded = transformer.embedded(config, params, query)
    angles = _angles(config, query.positions)
    half, stream = config.num_layers // 2, embedded
    kept = [None] * (half + 1) if cache is None else list(cache)
    for layer in range(half):
        stream, kept[layer] = parts.Block(config).apply(
            {"params": params[f"layer_{layer}"]}, stream, angles, query.visible,
            query.slots, kept[layer],
        )  # fmt: skip
    fresh = parts.applied(Shared(config), params["shared"], stream, angles)
    visible, stored = query.visible, tuple(each[:, :, :0] for each in fresh)
    if cache is not None:
        pair = zip(("k", "v"), fresh)
        kept[half] = {
            name: caches.write(kept[half][name], query.slots, new) for name, new in pair
        }
        stored = (kept[half]["k"], kept[half]["v"])
    if visible.among is not None:
        # Queries are no keys in the second pass, not even for themselves.
        visible = visible._replace(among=visible.among & ~is_query[:, None])
    stream = jnp.where(is_query[..., None], embedded, stream)
    for layer in range(half, config.num_layers):
        block = params[f"layer_{layer}"]
        stream = parts.applied(
            Cross(config), block, stream, angles, visible, stored, fresh
        )
    return Output(transformer.final_norm(config, params, stream)), tuple(kept)


def _angles(config: Config, positions: Array):
    rope = config.rope
    return None if rope is None else parts.rotary(rope, config.head_dim, positions)
