"""A transformer that tells what its attention says of every slot.

The model is `transformer.make_model` of the same parameters, whose cache has one leaf
more, "observed" [B, 1, S, C]; `Model.observed` reads it, and decoders of canvases hand
it to their rules and windows (`Row.observed`). The weights are computed beside the
layers' own attention, from the same queries and keys.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Output, Prompt, Query
from pdecode.kernels.attention import plain
from pdecode.models import layers as parts
from pdecode.models import transformer
from pdecode.models.config import Config


@functools.cache
def rollout(config: Config) -> Model:
    """How much of the last call's output came from each slot, [B, S, 1].

    Attention rollout (Abnar & Zuidema, 2020, arXiv:2005.00928): A is a layer's weights,
    mean over heads, R = (A_n + I) / 2 ... (A_1 + I) / 2, and a slot has its column's
    sum. A slot whose position was no lane of the call has the row of I in every A
    (d2Cache, arXiv:2509.23094). ValueError for shifted, sliding or causal models.
    """

    def begin(prompt: Prompt, num_slots: int) -> Array:
        return jnp.zeros((prompt.tokens.shape[0], 1, num_slots, 1), jnp.float32)

    def fold(query: Query, maps: list[Array], old: Array) -> Array:
        """The sums alone, from the last layer down; rows of no lane are those of I."""
        batch, _, size = maps[0].shape
        nth = jnp.arange(batch)[:, None]
        slots = _slots(query, size)
        sums = jnp.ones((batch, size))
        for weights in reversed(maps):
            mixed = weights + jax.nn.one_hot(slots, size)
            mixed /= jnp.maximum(mixed.sum(-1, keepdims=True), 1e-30)
            share = sums.at[nth, slots].get(mode="fill", fill_value=0.0)
            kept = sums.at[nth, slots].set(0.0, mode="drop")
            sums = kept + jnp.einsum("bq,bqs->bs", share, mixed)
        return sums[:, None, :, None]

    return _observed(config, begin, fold, "rollout of")


@functools.cache
def groups(config: Config, num_groups: int) -> Model:
    """How much each slot attends to groups of the prompt's tokens, [B, S, C].

    The groups are `prompt.context`, float [B, C, P]: how much a token of the prompt
    counts in each. Mean over layers and heads, of the last call that had the slot as a
    lane. ValueError for shifted, sliding or causal models.
    """

    def begin(prompt: Prompt, num_slots: int) -> Array:
        batch, width = prompt.tokens.shape
        if prompt.context is None or prompt.context.shape != (batch, num_groups, width):
            found = None if prompt.context is None else prompt.context.shape
            raise ValueError(
                f"prompt.context must be [B, C, P] = {(batch, num_groups, width)}, the "
                f"share of each token in each group, but it is {found}"
            )
        inside = jnp.arange(width)[None, None] < prompt.lengths[:, None, None]
        shares = jnp.where(inside, prompt.context, 0).astype(jnp.float32)
        shares = jnp.pad(shares, ((0, 0), (0, 0), (0, num_slots - width)))
        shares = shares.swapaxes(1, 2)[:, None]
        return jnp.concatenate([jnp.zeros_like(shares), shares], -1)

    def fold(query: Query, maps: list[Array], old: Array) -> Array:
        told, shares = jnp.split(old, 2, -1)
        mean = sum(maps) / len(maps)
        paid = jnp.einsum("bqs,bsc->bqc", mean, shares[:, 0])
        told = caches.write(told, _slots(query, told.shape[2]), paid[:, None])
        return jnp.concatenate([told, shares], -1)

    model = _observed(config, begin, fold, "groups of")
    return model._replace(
        observed=lambda cache: cache["observed"][:, 0, :, :num_groups]
    )


def _observed(config: Config, begin: Callable, fold: Callable, name: str) -> Model:
    odd = {
        "attention": config.attention != "bidirectional",
        "shift": config.shift,
        "sliding": any(config.sliding),
        "taps": bool(config.taps),
    }
    if any(odd.values()):
        named = [f"{key}={getattr(config, key)!r}" for key in odd if odd[key]]
        raise ValueError(
            "attention is observed in plain bidirectional layers, but "
            f"{config.name} has {', '.join(named)}"
        )
    model = transformer.make_model(config)

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        return {
            "layers": model.init_cache(prompt, num_slots),
            "observed": begin(prompt, num_slots),
        }

    def apply(params, query: Query, cache: Cache):
        stream, kept, maps = transformer.embedded(config, params, query), [], []
        for layer, old in enumerate(cache["layers"]):
            stream, new, seen = _layer(config, layer, params, query, stream, old)
            kept.append(new)
            maps.append(seen)
        after = {
            "layers": tuple(kept),
            "observed": fold(query, maps, cache["observed"]),
        }
        return Output(transformer.final_norm(config, params, stream)), after

    return model._replace(
        init_cache=init_cache,
        apply=apply,
        encode=apply,
        observed=lambda cache: cache["observed"][:, 0],
        tapped=None,
        exits=(),
        name=f"{name} {config.name}",
    )


def _layer(config: Config, layer: int, params, query: Query, stream: Array, cache):
    """(stream, cache, weights [B, Q, S]) of one layer."""
    if query.visible.among is not None:
        raise ValueError("attention to the lanes of a call is not observed: no probes")
    own, rope = transformer.own_config(config, layer), config.rope
    angles = rope and parts.rotary(rope, config.head_dim, query.positions)
    (stream, kept), found = parts.Block(own).apply(
        {"params": params[f"layer_{layer}"]},
        stream, angles, query.visible, query.slots, cache, mutable=["intermediates"],
    )  # fmt: skip
    (queries,) = found["intermediates"]["attention"]["queries"]
    scale = config.query_scale
    weights = plain.weights(
        queries, kept["k"], query.visible,
        scale=config.head_dim**-0.5 if scale is None else scale,
        soft_cap=config.attention_soft_cap,
    )  # fmt: skip
    return stream, kept, weights


def _slots(query: Query, size: int) -> Array:
    """int32 [B, Q]: slots of the lanes; those behind the row's end stand nowhere."""
    slots = query.slots
    if slots is None:
        slots = jnp.full_like(query.positions, size)
    elif not isinstance(slots, Array):
        slots = caches.each_slot(slots, query.tokens.shape[1])
    return jnp.where(slots < query.visible.stop, slots, size)
