"""EAGLE's draft layer: a target's hidden states continued by a layer of their own.

Li et al., 2024, arXiv:2401.15077. The layer reads the embedding of a token beside the
feature of the position before it, through one linear map, and answers with the feature
of the token's position, which the target's own head reads. Embedding and head are the
target's. The first layer has no norm in front of its attention. Parameters are named as
a transformer's: {"fc": {"kernel" [2E, E], "bias"}, "layer_0": ...}.

EAGLE-3's (2025, arXiv:2503.01840) reads several layers of the target, joined by one
linear map, {"fc": {"kernel" [nE, E]}}; its one layer attends from the normed embedding
beside the normed feature, and it has a norm and a head of its own: "head" [V, E], or
"change"/"head", what it has more than the target's, which begins as zero.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import (
    Cache,
    DraftLayer,
    Head,
    Output,
    Params,
    Prompt,
    Query,
    Visibility,
)
from pdecode.models import layers as parts
from pdecode.models import medusa_heads, transformer
from pdecode.models.config import Config

__all__ = [
    "angles",
    "before_heads",
    "block",
    "default_taps",
    "init",
    "init_fused",
    "make_fused",
    "make_layer",
    "own_config",
    "quiet_block",
    "through",
]


def init(config: Config, key: Array, num_layers: int = 1) -> Params:
    """Random float32 parameters of `num_layers` layers for a target of `config`."""
    own, width = own_config(config, num_layers), config.width
    keys = jax.random.split(key, num_layers + 1)
    joined = jnp.zeros((1, 1, 2 * width), jnp.float32)
    params = {"fc": _joining(own).init(keys[0], joined)["params"]}
    for layer in range(num_layers):
        made = block(own, keys[1 + layer])
        if layer == 0:
            del made["attention_norm"]
        params[f"layer_{layer}"] = made
    return params


def block(own: Config, key: Array) -> Params:
    """Random float32 parameters of one layer of `own`."""
    stream = jnp.zeros((1, 1, own.width), own.dtype)
    place = jnp.zeros((1, 1), jnp.int32)
    visible = Visibility(place, place + 1)
    inputs = stream, angles(own, place), visible, None, None
    return dict(parts.Block(own).init(key, *inputs)["params"])


def before_heads(own: Config, apply: Callable, name: str) -> DraftLayer:
    """The record of `own.num_layers` layers whose answer heads read (their `past`)."""
    return DraftLayer(
        init_cache=functools.partial(_init_cache, own),
        apply=apply,
        read=lambda params, output: output.hidden,
        law=functools.partial(_law, own),
        width=own.width,
        name=name,
    )


def quiet_block(own: Config, key: Array) -> Params:
    """As `block`, but what the layer adds to its stream begins as zero."""
    found = block(own, key)
    for part, name in (("attention", "out"), ("mlp", "down")):
        zeros = jax.tree.map(jnp.zeros_like, found[part][name])
        found[part] = {**found[part], name: zeros}
    return found


def through(
    own: Config, params: Params, stream: Array, query: Query, cache: Any
) -> tuple[Array, Any]:
    """`stream` [B, Q, E] behind one layer of `params`, and the layer's cache."""
    return parts.applied(
        parts.Block(own), params, stream, angles(own, query.positions), query.visible,
        query.slots, cache,
    )  # fmt: skip


def own_config(config: Config, num_layers: int = 1) -> Config:
    """What the layers of a target's drafter are: its own, dense and with a full view.

    ValueError for a target that reads its answers one slot to the left.
    """
    if config.shift:
        raise ValueError(
            f"{config.name} has shift=True: a draft layer continues a model whose "
            "state at a token predicts the next one"
        )
    return dataclasses.replace(
        config, num_layers=num_layers, experts=None, dense_layers=0, window=None,
        sliding=(), rope_sliding=None, taps=(), exits=(), post_norms=False,
    )  # fmt: skip


@functools.cache
def make_layer(config: Config, num_layers: int = 1) -> DraftLayer:
    """The record of layers for a target of `config`; equal ones are one object."""
    own = own_config(config, num_layers)
    return DraftLayer(
        init_cache=functools.partial(_init_cache, own),
        apply=functools.partial(_apply, own),
        read=lambda params, output: output.hidden,
        law=functools.partial(_law, own),
        width=config.width,
        name=f"layer of {config.name}",
    )


def init_fused(config: Config, key: Array, zero_init: bool = False) -> Params:
    """Float32 parameters of EAGLE-3's layer for a target with `config.taps`.

    Random but for the head, which is the target's. With `zero_init` the last tap is
    read as it is and the others come in through zeros (Hyper-Bagel, Lu et al., 2025,
    arXiv:2509.18824), so that the layer begins as one that reads the last alone.
    """
    own, width = own_config(config), config.width
    keys = jax.random.split(key, 3)
    every = jnp.zeros((1, 1, len(config.taps) * width), jnp.float32)
    pair, place = jnp.zeros((1, 1, 2 * width), own.dtype), jnp.zeros((1, 1), jnp.int32)
    layer = block(own, keys[0])
    attention = parts.Attention(own).init(
        keys[1], pair, angles(own, place), Visibility(place, place + 1), None, None
    )["params"]
    norm = layer["attention_norm"]
    fusing = _fusing(own).init(keys[2], every)["params"]
    if zero_init:
        others = jnp.zeros((every.shape[-1] - width, width), jnp.float32)
        fusing = {"kernel": jnp.concatenate([others, jnp.eye(width)])}
    return {
        "fc": fusing,
        "layer_0": {**layer, "attention": attention, "stream_norm": norm},
        "norm": norm,
        "change": {"head": jnp.zeros((config.vocab_size, width), jnp.float32)},
    }


@functools.cache
def make_fused(config: Config) -> DraftLayer:
    """The record of EAGLE-3's layer for a target with `config.taps`.

    Params may have "head_bias" [V], which bans what a smaller vocabulary leaves out.
    ValueError for a target without taps.
    """
    if not config.taps:
        raise ValueError(f"{config.name} has no taps, which the layer would read")
    own = own_config(config)
    return DraftLayer(
        init_cache=functools.partial(_init_cache, own),
        apply=functools.partial(_apply_fused, own),
        read=functools.partial(_read_taps, own, config.taps),
        law=functools.partial(_law_fused, own),
        width=config.width,
        taps=config.taps,
        name=f"layer of {config.name}",
    )


def default_taps(num_layers: int) -> tuple[str, ...]:
    """What EAGLE-3 reads of a target: a low, a middle and a high layer.

    The inputs of the third, the middle and the last layer but two, as released; of a
    target of fewer than eight layers its embedding, a middle and the last.
    """
    if num_layers >= 8:
        inputs = (2, num_layers // 2, num_layers - 3)
        return tuple(f"layer_{layer - 1}" for layer in inputs)
    middle, last = f"layer_{(num_layers - 1) // 2}", f"layer_{num_layers - 1}"
    return tuple(dict.fromkeys(("embed", middle, last)))


def _apply_fused(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """As `_apply`, for EAGLE-3's layer."""
    assert query.extra is not None, "a lane has the feature before it"
    token = transformer.embedded(own, target, query._replace(extra=None))
    block, stream = params["layer_0"], query.extra.astype(token.dtype)
    token = parts.applied(parts.norm(own), block["attention_norm"], token)
    state = parts.applied(parts.norm(own), block["stream_norm"], stream)
    branch, after = parts.applied(
        parts.Attention(own), block["attention"],
        jnp.concatenate([token, state], -1), angles(own, query.positions),
        query.visible, query.slots, None if cache is None else cache[0],
    )  # fmt: skip
    stream = stream + branch
    return stream + parts.mixed(own, block, stream), (after,)


def _read_taps(own: Config, taps: tuple[str, ...], params: Params, output: Output):
    every = jnp.concatenate([output.taps[name] for name in taps], -1)
    return parts.applied(_fusing(own), params["fc"], every)


def _law_fused(own: Config, params: Params, target: Params, features: Array):
    head = medusa_heads.own_head(params, transformer.make_model(own).head(target))
    return parts.applied(parts.norm(own), params["norm"], features), head


def _fusing(own: Config):
    return parts.dense(own, own.width, False, "fc")


def _init_cache(own: Config, prompt: Prompt, num_slots: int) -> Cache:
    return transformer.make_model(own).init_cache(prompt, num_slots)


def _apply(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """Features [B, Q, E]; without a cache the call's own lanes are the slots."""
    turned = angles(own, query.positions)
    caches = [None] * own.num_layers if cache is None else list(cache)
    first = None if cache is None else cache[:1]
    stream, (caches[0],) = opened(own, params, target, query, first)
    for layer in range(own.num_layers):
        block = params[f"layer_{layer}"]
        if layer > 0:
            branch, caches[layer] = parts.attended(
                own, block, stream, turned, query.visible, query.slots, caches[layer]
            )
            stream = stream + branch
        stream = stream + parts.mixed(own, block, stream)
    return stream, tuple(caches)


def opened(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """Lanes [B, Q, E] of token and feature, behind the first layer's attention."""
    assert query.extra is not None, "a lane has the feature before it"
    token = transformer.embedded(own, target, query._replace(extra=None))
    joined = jnp.concatenate([token, query.extra.astype(token.dtype)], -1)
    stream = parts.applied(_joining(own, params), params["fc"], joined)
    # What `fc` gives is not normed again.
    branch, after = parts.applied(
        parts.Attention(own), params["layer_0"]["attention"], stream,
        angles(own, query.positions), query.visible, query.slots,
        None if cache is None else cache[0],
    )  # fmt: skip
    return stream + branch, (after,)


def _law(own: Config, params: Params, target: Params, features: Array):
    del params
    head: Head = transformer.make_model(own).head(target)
    return features, head


def _joining(own: Config, params: Params | None = None):
    """The map in front of the layers; some published ones have no bias."""
    bias = params is None or "bias" in params["fc"]
    return parts.dense(own, own.width, bias, "fc")


def angles(own: Config, positions: Array):
    """What rotary positions turn by, or None."""
    if own.rope is None:
        return None
    return parts.rotary(own.rope, own.head_dim, positions)
