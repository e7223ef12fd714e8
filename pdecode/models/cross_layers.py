"""DREAM's draft layers: tokens that look at the target's features across.

Hu et al., 2025, arXiv:2505.19201. Two self-attending layers with a cross-attending one
between them, a last norm, and the target's own head. The stream begins as the target's
embedding of a token alone; features come in through the cross attention, whose slot t
holds the keys and values of the feature of position t - 1: the target's where text is
committed, the layers' own on a draft. Queries and keys are normed and not rotated. The
tanh of a gate that begins as zero multiplies what the cross attention adds, and its
MLP, so that it begins as nothing.

Parameters: "layer_0" and "layer_1" as a transformer's, "cross" and "norm".

Deviations: an image's embeddings are those of its tokens, or of placeholders where it
comes as context, and all its tokens are kept.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    DraftLayer,
    Params,
    Query,
    Visibility,
)
from pdecode.kernels.attention import api as attention_kernel
from pdecode.models import draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config

__all__ = ["init", "make_layer", "run"]


def init(config: Config, key: Array) -> Params:
    """Random float32 parameters for a target of `config`; the gates are zero."""
    own = draft_layers.own_config(config, 3)
    keys = jax.random.split(key, 4)
    stream = jnp.zeros((1, 1, own.width), own.dtype)
    place = jnp.zeros((1, 1), jnp.int32)
    angles = draft_layers.angles(own, place)
    first, cross, last = (
        parts.Block(own).init(
            each, stream, angles, Visibility(place, place + 1), None, None
        )["params"]
        for each in keys[:3]
    )
    head = jnp.zeros((1, 1, 1, own.head_dim), own.dtype)
    normed = parts.Norm("rms", own.norm_eps, own.norm_offset).init(keys[3], head)
    attention = {**cross["attention"]}
    attention |= {"query_norm": normed["params"], "key_norm": normed["params"]}
    gates = {
        name: {"bias": jnp.zeros((1,), jnp.float32)}
        for name in ("attention_gate", "mlp_gate")
    }
    return {
        "layer_0": first,
        "cross": {**cross, "attention": attention, **gates},
        "layer_1": last,
        "norm": parts.norm(own).init(keys[3], stream)["params"],
    }


@functools.cache
def make_layer(config: Config) -> DraftLayer:
    """The record of the layers for a target of `config`; equal ones are one object."""
    own = draft_layers.own_config(config, 3)
    return draft_layers.make_layer(config, 3)._replace(
        apply=functools.partial(_apply, own),
        name=f"cross layers of {config.name}",
    )


def run(
    config: Config, params: Params, target: Params, query: Query
) -> tuple[Array, Array]:
    """Features [B, Q, E] of whole rows, and the stream behind the cross attention."""
    own = draft_layers.own_config(config, 3)
    features, middle, _ = _run(own, params, target, query, None)
    return features, middle


def _apply(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    features, _, after = _run(own, params, target, query, cache)
    return features, after


def _run(own: Config, params, target, query: Query, cache: Cache | None):
    """(features, middle, cache)."""
    stream = transformer.embedded(own, target, query._replace(extra=None))
    stored: list[Any] = [None] * 3 if cache is None else list(cache)
    angles = draft_layers.angles(own, query.positions)

    def attending(name: str, stream: Array, old: Any):
        return parts.applied(
            parts.Block(own), params[name], stream, angles, query.visible, query.slots,
            old,
        )  # fmt: skip

    stream, stored[0] = attending("layer_0", stream, stored[0])
    middle, stored[1] = _crossed(own, params["cross"], stream, query, stored[1])
    stream, stored[2] = attending("layer_1", middle, stored[2])
    features = parts.applied(parts.norm(own), params["norm"], stream)
    return features, middle, tuple(stored)


def _crossed(own: Config, block, stream: Array, query: Query, cache: Any):
    """The stream and what its lanes see of features, through the gates."""
    assert query.extra is not None, "a lane has the feature before it"
    attention, features = block["attention"], query.extra.astype(stream.dtype)
    normed = parts.applied(parts.norm(own), block["attention_norm"], stream)

    def heads(name: str, x: Array, count: int) -> Array:
        made = parts.dense(own, count * own.head_dim, own.qkv_bias, name)
        made = parts.applied(made, attention[name], x)
        return made.reshape(*x.shape[:2], count, own.head_dim)

    norm = parts.Norm("rms", own.norm_eps, own.norm_offset)
    asked = heads("query", normed, own.num_heads)
    asked = parts.applied(norm, attention["query_norm"], asked)
    key = heads("key", features, own.num_kv_heads)
    key = parts.applied(norm, attention["key_norm"], key).swapaxes(1, 2)
    value = heads("value", features, own.num_kv_heads).swapaxes(1, 2)
    cache, key, value = parts.kept(cache, query.visible, query.slots, key, value)
    found = attention_kernel.attention(
        asked, caches.floats(cache["k"]), caches.floats(cache["v"]), query.visible,
        key, value, scale=own.head_dim**-0.5,
    ).reshape(*stream.shape[:2], -1)  # fmt: skip
    closing = parts.dense(own, own.width, own.out_bias, "out")
    branch = parts.applied(closing, attention["out"], found)
    stream = stream + _opened(block["attention_gate"], branch)
    return stream + _opened(block["mlp_gate"], parts.mixed(own, block, stream)), cache


def _opened(gate: Params, branch: Array) -> Array:
    share = jnp.tanh(gate["bias"]).reshape((1,) * branch.ndim)
    return share.astype(branch.dtype) * branch
