"""EAGLE's draft layer: a target's hidden states continued by a layer of their own.

Li et al., 2024, arXiv:2401.15077. The layer reads the embedding of a token beside the
feature of the position before it, through one linear map, and answers with the feature
of the token's position, which the target's own head reads. Embedding and head are the
target's. The first layer has no norm in front of its attention. Parameters are named as
a transformer's: {"fc": {"kernel" [2E, E], "bias"}, "layer_0": ...}.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import (
    Cache,
    DraftLayer,
    Head,
    Params,
    Prompt,
    Query,
    Visibility,
)
from pdecode.models import layers as parts
from pdecode.models import transformer
from pdecode.models.config import Config

__all__ = ["init", "make_layer", "own_config"]


def init(config: Config, key: Array, num_layers: int = 1) -> Params:
    """Random float32 parameters of `num_layers` layers for a target of `config`."""
    own, width = own_config(config, num_layers), config.width
    keys = jax.random.split(key, num_layers + 1)
    joined = jnp.zeros((1, 1, 2 * width), jnp.float32)
    params = {"fc": _joining(own).init(keys[0], joined)["params"]}
    stream, place = jnp.zeros((1, 1, width), own.dtype), jnp.zeros((1, 1), jnp.int32)
    visible = Visibility(place, place + 1)
    for layer in range(num_layers):
        block = dict(
            parts.Block(own).init(
                keys[1 + layer], stream, _angles(own, place), visible, None, None
            )["params"]
        )
        if layer == 0:
            del block["attention_norm"]
        params[f"layer_{layer}"] = block
    return params


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
        sliding=(), rope_sliding=None, taps=(),
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


def _init_cache(own: Config, prompt: Prompt, num_slots: int) -> Cache:
    return transformer.make_model(own).init_cache(prompt, num_slots)


def _apply(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """Features [B, Q, E]; without a cache the call's own lanes are the slots."""
    assert query.extra is not None, "a lane has the feature before it"
    token = transformer.embedded(own, target, query._replace(extra=None))
    joined = jnp.concatenate([token, query.extra.astype(token.dtype)], -1)
    stream = parts.applied(_joining(own), params["fc"], joined)
    angles = _angles(own, query.positions)
    caches = [None] * own.num_layers if cache is None else list(cache)
    for layer in range(own.num_layers):
        block = params[f"layer_{layer}"]
        if layer == 0:  # what `fc` gives is not normed again
            branch, caches[0] = parts.applied(
                parts.Attention(own), block["attention"], stream, angles,
                query.visible, query.slots, caches[0],
            )  # fmt: skip
        else:
            branch, caches[layer] = parts.attended(
                own, block, stream, angles, query.visible, query.slots, caches[layer]
            )
        stream = stream + branch
        stream = stream + parts.mixed(own, block, stream)
    return stream, tuple(caches)


def _law(own: Config, params: Params, target: Params, features: Array):
    del params
    head: Head = transformer.make_model(own).head(target)
    return features, head


def _joining(own: Config):
    return parts.dense(own, own.width, True, "fc")


def _angles(own: Config, positions: Array):
    if own.rope is None:
        return None
    return parts.rotary(own.rope, own.head_dim, positions)
