"""EAGLE's draft layer behind an image of which it keeps a few vectors.

SpecVLM (Huang et al., 2025, arXiv:2509.11815) and FLASH (Wang et al., 2025,
arXiv:2505.12728): the target reads every token of an image, its drafter a handful, made
of the target's features there (`models.condensers`). They take the place of what `fc`
makes of a text token, unjoined with any embedding, and of the image's slots; positions
of the text are the target's. Only what drafts are made of depends on it.

Parameters are those of `models.draft_layers.init` and "condenser". SpecVLM's layer
keeps the norm in front of its attention. FLASH's makes `num_ahead` features a lane
with {"ahead": {"open", "close"}} behind its one attention, in place of an MLP.
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
    Prompt,
    Query,
    SlotRun,
    Visibility,
)
from pdecode.models import condensers, draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.condensers import Condenser
from pdecode.models.config import Config

__all__ = ["init", "make_layer", "read_rows"]


def init(
    config: Config, condenser: Condenser, key: Array, num_ahead: int | None = None
) -> Params:
    """Random float32 parameters for a target of `config`; FLASH's with `num_ahead`."""
    condensers.check(condenser)
    keys = jax.random.split(key, 4)
    width = config.width
    params = draft_layers.init(config, keys[0])
    block = params["layer_0"]
    condensed = condensers.init(condenser, width, keys[1])
    if num_ahead is None:
        block["attention_norm"] = block["mlp_norm"]
        return params | {"condenser": condensed}
    if num_ahead < 1:
        raise ValueError(f"{num_ahead=} must be at least 1")
    draws = [jax.random.normal(each, (width, 4 * width)) for each in keys[2:]]
    close = draws[1].T[:, None] * (4 * width) ** -0.5
    ahead = {
        "open": {"kernel": draws[0] * width**-0.5},
        "close": {"kernel": jnp.tile(close, (1, num_ahead, 1)).reshape(4 * width, -1)},
    }
    kept = {"attention": block["attention"], "mlp_norm": block["mlp_norm"]}
    return params | {"layer_0": kept, "ahead": ahead, "condenser": condensed}


@functools.cache
def make_layer(config: Config, condenser: Condenser, num_ahead: int = 1) -> DraftLayer:
    """The record of a layer for a target of `config`; equal ones are one object.

    `num_ahead` is that of its parameters.
    """
    condensers.check(condenser)
    own = draft_layers.own_config(config)
    plain = draft_layers.make_layer(config)
    return plain._replace(
        init_cache=functools.partial(_init_cache, own, condenser),
        apply=functools.partial(_apply, own, condenser),
        begin=functools.partial(_begin, own, condenser),
        num_condensed=condenser.num_gone,
        num_ahead=num_ahead,
        name=f"visual layer of {config.name}",
    )


def read_rows(
    config: Config,
    condenser: Condenser,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    features: Array,  # [B, L, E]  of the target, or shaken
    noise: Array | None = None,
) -> Array:
    """The layer's answers [B, L - C, ..] at the text's tokens of whole rows.

    `noise` is that of the condenser's gate.
    """
    own = draft_layers.own_config(config)
    found, _ = _read(own, condenser, params, target, tokens, features, noise, None)
    return found


def _init_cache(own: Config, condenser: Condenser, prompt: Prompt, num_slots: int):
    """ValueError for prompts none of which can hold an image and a token behind it.

    Lengths are not looked at: a shorter row of a wider batch gets drafts of no worth.
    """
    size, least = prompt.tokens.shape[1], condenser.num_features + 1
    if size < least:
        raise ValueError(
            f"prompts of {size} tokens at most: the layer of {own.name} condenses the "
            f"first {condenser.num_features}, so give {least} at least"
        )
    made = transformer.make_model(own)
    return {
        "layer": made.init_cache(prompt, num_slots - condenser.num_gone),
        "first": jnp.zeros(prompt.tokens.shape[0], jnp.int32),
        "length": prompt.lengths,
    }


def _begin(
    own: Config, condenser: Condenser, params: Params, target: Params,
    tokens: Array, features: Array, cache: Cache,
) -> Cache:  # fmt: skip
    return _read(own, condenser, params, target, tokens, features, None, cache)[1]


def _read(
    own: Config, condenser: Condenser, params: Params, target: Params, tokens: Array,
    features: Array, noise: Array | None, cache: Cache | None,
) -> tuple[Array, Cache | None]:  # fmt: skip
    """Rows from their beginning: an image's vectors, then pairs of the text.

    image i i i i, text a b: slots v v | a b, where a stands beside the last image
    token's feature, and sees both v.
    """
    size, batch = condenser.num_features, tokens.shape[0]
    num_text = features.shape[1] - size
    asked = tokens[:, size : size + condenser.num_question]
    asked = transformer.table(own, target, asked)
    if cache is not None:  # a question may be shorter; padding asks nothing
        is_text = size + jnp.arange(asked.shape[1])[None] < cache["length"][:, None]
        asked = jnp.where(is_text[..., None], asked, 0)
    image, first = condensers.apply(
        condenser, params.get("condenser", {}), features[:, :size], asked, noise
    )
    behind = size + jnp.arange(num_text, dtype=jnp.int32)
    behind = jnp.broadcast_to(behind[None], (batch, num_text))
    pairs = Query(
        tokens=tokens[:, size : size + num_text],
        positions=behind,
        slots=None,
        visible=Visibility(behind, behind),
        extra=features[:, size - 1 : size - 1 + num_text],
    )
    text = _joined(own, params, target, pairs)
    stream = jnp.concatenate([image.astype(text.dtype), text], 1)
    place = jnp.arange(stream.shape[1], dtype=jnp.int32)
    spread = jnp.asarray(condensers.places(condenser), jnp.int32)[None]
    spread = jnp.broadcast_to(spread, (batch, condenser.size))
    positions = jnp.concatenate([spread, behind], 1)

    def of_rows(row: Array) -> Array:
        return jnp.broadcast_to(row[None], stream.shape[:2])

    # Who comes before the first vector that counts sees itself, and is seen by nobody.
    start = jnp.minimum(first[:, None], of_rows(place))
    visible = Visibility(start, of_rows(place + 1))
    found, after = _layer(
        own, params, stream, positions, visible,
        None if cache is None else SlotRun(jnp.zeros(batch, jnp.int32)),
        None if cache is None else cache["layer"],
    )  # fmt: skip
    if cache is not None:
        cache = {**cache, "layer": after, "first": first}
    return found[:, condenser.size :], cache


def _apply(
    own: Config, condenser: Condenser, params: Params, target: Params, query: Query,
    cache: Cache,
) -> tuple[Array, Cache]:  # fmt: skip
    """Lanes of the text, whose slots are `num_gone` before their positions."""
    gone, size = condenser.num_gone, condenser.num_features
    visible, slots = query.visible, query.slots
    start = jnp.broadcast_to(cache["first"][:, None], query.tokens.shape)
    visible = visible._replace(start=start, stop=jnp.maximum(visible.stop - gone, 0))
    # The image's slots stay its own: nothing is stored of a row that has not got all of
    # it, nor of lanes at its positions.
    if isinstance(slots, SlotRun):
        stored = jnp.broadcast_to((slots.start >= size)[:, None], query.tokens.shape)
        if slots.stored is not None:
            stored &= slots.stored
        slots = SlotRun(jnp.maximum(slots.start - gone, 0), stored)
    elif slots is not None:
        slots = jnp.where(slots < size, caches.UNSTORED, slots - gone)
    stream = _joined(own, params, target, query)
    found, after = _layer(
        own, params, stream, query.positions, visible, slots, cache["layer"]
    )
    return found, {**cache, "layer": after}


def _layer(own: Config, params, stream: Array, positions, visible, slots, cache: Any):
    """Answers of the layer's one block, and its cache."""
    block, angles = params["layer_0"], draft_layers.angles(own, positions)
    stored = None if cache is None else cache[0]
    if "attention_norm" in block:
        branch, after = parts.attended(
            own, block, stream, angles, visible, slots, stored
        )
    else:
        branch, after = parts.applied(
            parts.Attention(own), block["attention"], stream, angles, visible, slots,
            stored,
        )  # fmt: skip
    stream = stream + branch
    if "ahead" not in params:
        return stream + parts.mixed(own, block, stream), (after,)
    ahead = params["ahead"]
    num_ahead = ahead["close"]["kernel"].shape[1] // own.width
    normed = parts.applied(parts.norm(own), block["mlp_norm"], stream)
    opened = parts.dense(own, 4 * own.width, False, "open")
    opened = jax.nn.silu(parts.applied(opened, ahead["open"], normed))
    closing = parts.dense(own, num_ahead * own.width, False, "close")
    branch = parts.applied(closing, ahead["close"], opened)
    return jnp.tile(stream, (1, 1, num_ahead)) + branch, (after,)


def _joined(own: Config, params: Params, target: Params, query: Query) -> Array:
    """What the layer makes of tokens beside the features before them."""
    assert query.extra is not None, "a lane has the feature before it"
    token = transformer.embedded(own, target, query._replace(extra=None))
    joined = jnp.concatenate([token, query.extra.astype(token.dtype)], -1)
    return parts.applied(parts.dense(own, own.width, True, "fc"), params["fc"], joined)
