"""dLLM-Cache: what a layer made of a position is kept until its value changes.

Liu et al., 2025, arXiv:2506.06295. Of every layer the keys and values, and what its
attention and its MLP added to the stream, are kept. The prompt's are made anew every
`prompt_every` calls, the response's every `response_every`; in between every layer
compares its new values with the kept ones, makes the `num_updated` least alike anew and
takes the rest as it is. The model is an ordinary one for every decoder of whole
canvases (`windows.canvas`). Deviation: a call that makes the response anew evaluates
the prompt's lanes too, and drops them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Output, Prompt, Query, SlotRun
from pdecode.kernels.attention import api as attention_kernel
from pdecode.models import fusing, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config


@functools.cache
def reused(
    config: Config, *, prompt_every: int, response_every: int, num_updated: int
) -> Model:
    """The model of `config` over kept features; parameters are the transformer's.

    Guarantee: lossy; with both periods 1 it is the model without a cache. The cache's
    "rows" int32 [B] counts the lanes that were made anew, over all layers.
    ValueError for what it does not keep: causal, shifted, sliding or tapped models.
    """
    odd = {
        "attention": config.attention != "bidirectional",
        "shift": config.shift,
        "sliding": any(config.sliding),
        "post_norms": config.post_norms,
        "taps": bool(config.taps),
    }
    if any(odd.values()):
        named = [f"{name}={getattr(config, name)!r}" for name in odd if odd[name]]
        raise ValueError(
            f"features are kept for plain bidirectional layers, but {config.name} has "
            f"{', '.join(named)}"
        )
    for name, value in (
        ("prompt_every", prompt_every),
        ("response_every", response_every),
        ("num_updated", num_updated),
    ):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    apply = functools.partial(
        _apply, config, (prompt_every, response_every), num_updated
    )
    return transformer.make_model(config)._replace(
        init_cache=functools.partial(_init_cache, config),
        apply=apply,
        encode=apply,
        move=_cannot_move,
        name=f"reused {config.name}",
    )


def _init_cache(config: Config, prompt: Prompt, num_slots: int) -> Cache:
    batch = prompt.tokens.shape[0]
    heads = (batch, config.num_kv_heads, num_slots, config.head_dim)
    stream = (batch, 1, num_slots, config.width)
    shapes = {"k": heads, "v": heads, "attention": stream, "mlp": stream}
    zeros = functools.partial(jnp.zeros, dtype=config.dtype)
    return {
        "layers": tuple(
            {name: zeros(shape) for name, shape in shapes.items()}
            for _ in range(config.num_layers)
        ),
        "lengths": prompt.lengths,
        "rows": jnp.zeros(batch, jnp.int32),
        "turn": jnp.zeros((), jnp.int32),
    }


def _cannot_move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
    raise ValueError("kept features belong to their positions: decode whole canvases")


def _apply(config, periods, num_updated: int, params, query: Query, cache: Cache):
    if not isinstance(query.slots, SlotRun) or query.slots.stored is not None:
        raise ValueError(
            "kept features are those of a whole canvas: leave out windows and caches"
        )
    is_prompt = query.positions < cache["lengths"][:, None]
    inside = query.positions < query.visible.stop
    turn = cache["turn"]
    prompt_now, response_now = (turn % every == 0 for every in periods)
    size = min(num_updated, query.tokens.shape[1])

    def whole(layers):
        anew = inside & jnp.where(is_prompt, prompt_now, prompt_now | response_now)

        def pick(alike):
            del alike
            return query.positions, anew

        return _run(config, params, query, layers, pick)

    def some(layers):
        def pick(alike):
            alike = jnp.where(inside & ~is_prompt, alike, jnp.inf)
            least, lanes = jax.lax.top_k(-alike, size)
            return lanes.astype(jnp.int32), jnp.isfinite(least)

        return _run(config, params, query, layers, pick)

    hidden, layers, rows = jax.lax.cond(
        prompt_now | response_now, whole, some, cache["layers"]
    )
    after = {"layers": layers, "rows": cache["rows"] + rows, "turn": turn + 1}
    return Output(hidden), {**cache, **after}


def _run(config: Config, params, query: Query, layers, pick: Callable) -> tuple:
    """(hidden [B, Q, E], layers, lanes made anew [B]) of one call.

    `pick(alike [B, Q])` gives lanes [B, K] and which of them (bool) are made anew.
    """
    fusing.refuse(params, f"reused {config.name}")
    stream, kept = transformer.embedded(config, params, query), []
    rows = jnp.zeros(query.tokens.shape[0], jnp.int32)
    for layer, old in enumerate(layers):
        block = params[f"layer_{layer}"]
        stream, new, anew = _layer(config, layer, block, query, stream, old, pick)
        kept.append(new)
        rows = rows + anew.sum(1, dtype=jnp.int32)
    return transformer.final_norm(config, params, stream), tuple(kept), rows


def _layer(config: Config, layer: int, block, query: Query, stream, old, pick):
    batch, length, _ = stream.shape

    def heads(name: str, x: Array, number: int) -> Array:
        dense = parts.dense(config, number * config.head_dim, config.qkv_bias, name)
        made = parts.applied(dense, block["attention"][name], x)
        made = made.reshape(batch, x.shape[1], number, config.head_dim)
        if config.qk_norm and name != "value":
            norm = parts.Norm("rms", config.norm_eps, config.norm_offset)
            made = parts.applied(norm, block["attention"][f"{name}_norm"], made)
        return made

    normed = parts.applied(parts.norm(config), block["attention_norm"], stream)
    value = heads("value", normed, config.num_kv_heads)
    before = old["v"][:, :, :length].swapaxes(1, 2)
    lanes, anew = pick(_cosine(value, before))

    def of(leaf: Array) -> Array:
        index = jnp.expand_dims(lanes, tuple(range(2, leaf.ndim)))
        return jnp.take_along_axis(leaf, index, 1)

    slots = jnp.where(anew, lanes, caches.UNSTORED)
    few = of(normed)
    q = heads("query", few, config.num_heads)
    k = heads("key", few, config.num_kv_heads)
    if config.rope is not None:
        angles = parts.rotary(config.rope, config.head_dim, of(query.positions))
        q, k = parts.rotate(q, angles), parts.rotate(k, angles)
    k, v = k.swapaxes(1, 2), of(value).swapaxes(1, 2)
    new = {
        "k": caches.write(old["k"], slots, k.astype(old["k"].dtype)),
        "v": caches.write(old["v"], slots, v.astype(old["v"].dtype)),
    }
    scale = config.query_scale
    out = attention_kernel.attention(
        q, new["k"], new["v"], jax.tree.map(of, query.visible), k, v,
        scale=config.head_dim**-0.5 if scale is None else scale,
        soft_cap=config.attention_soft_cap,
    ).reshape(batch, lanes.shape[1], -1)  # fmt: skip
    closing = parts.dense(config, config.width, config.out_bias, "out")
    out = parts.applied(closing, block["attention"]["out"], out)
    new["attention"] = caches.write(old["attention"], slots, out[:, None])
    stream = stream + new["attention"][:, 0, :length]
    out = parts.mixed(transformer.own_config(config, layer), block, of(stream))
    new["mlp"] = caches.write(old["mlp"], slots, out[:, None])
    return stream + new["mlp"][:, 0, :length], new, anew


def _cosine(one: Array, other: Array) -> Array:
    """float32 [B, Q] of heads [B, Q, H, D]; zero where nothing was kept."""
    one, other = (
        each.astype(jnp.float32).reshape(*each.shape[:2], -1) for each in (one, other)
    )
    size = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / jnp.maximum(size, 1e-12)
