"""DiffusionGemma: a causal encoder and a bidirectional denoiser over one cache.

One set of weights, two modes. `encode` reads committed tokens causally and writes the
cache. `apply` denoises a canvas: every lane sees every lane of the call and the encoded
prefix, nothing is stored, and the previous step's beliefs come in as a soft embedding.
After google/diffusiongemma (2026; no paper), following its published implementation in
transformers where public versions differ: on sliding layers the whole canvas shares one
window, the last `window - 1` slots of the prefix.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    Head,
    Model,
    Output,
    Params,
    Prompt,
    Query,
    Visibility,
)
from pdecode.kernels.attention import api as attention_kernel
from pdecode.models import layers as parts
from pdecode.models.config import Experts, Rope


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a DiffusionGemma. Full layers have heads of their own size."""

    vocab_size: int
    width: int
    num_heads: int
    num_kv_heads: int  # of sliding layers
    head_dim: int
    full_num_kv_heads: int
    full_head_dim: int
    mlp_width: int
    experts: Experts
    sliding: tuple[bool, ...]  # by layer
    window: int
    canvas_len: int
    rope_sliding: Rope
    rope_full: Rope  # turns a part of the pairs only
    norm_eps: float = 1e-6
    logit_soft_cap: float | None = 30.0
    max_positions: int | None = None
    eos_ids: tuple[int, ...] = ()
    taps: tuple[str, ...] = ()  # "embed": the stream into layer 0; "layer_i"
    activation: str = "gelu_tanh"
    dtype: str = "float32"
    name: str = "diffusion_gemma"

    @property
    def num_layers(self) -> int:
        return len(self.sliding)

    def heads(self, layer: int) -> tuple[int, int]:
        """(key heads, head size) of a layer."""
        if self.sliding[layer]:
            return self.num_kv_heads, self.head_dim
        return self.full_num_kv_heads, self.full_head_dim


def init(config: Config, key: Array) -> Params:
    """Random float32 parameters; `key` is consumed."""
    keys = jax.random.split(key, config.num_layers + 2)
    stream = jnp.zeros((1, 1, config.width), config.dtype)
    place = jnp.zeros((1, 1), jnp.int32)
    visible = Visibility(place, place + 1, None, place[:, :, None] == 0)
    shape = (config.vocab_size, config.width)
    params = {
        "embed": config.width**-0.5 * jax.random.normal(keys[0], shape, jnp.float32),
        "norm": _norm(config).init(key, stream)["params"],
        "self_conditioning": SelfConditioning(config).init(keys[1], stream, stream)[
            "params"
        ],
    }
    for layer in range(config.num_layers):
        num_kv_heads, head_dim = config.heads(layer)
        empty = jnp.zeros((1, num_kv_heads, 0, head_dim), config.dtype)
        block = Block(config, layer, False)
        cache = {"k": empty, "v": empty}
        params[f"layer_{layer}"] = block.init(
            keys[2 + layer], stream, place, place, visible, cache
        )["params"]
    return params


@functools.cache
def make_model(config: Config) -> Model:
    """The decoder's view; equal configurations give the same object.

    `apply` denoises: the caller gives `among` all true over the canvas, the interval
    [.., P) of encoded slots, and slots out of range. `query.extra` [B, L, E] is the
    mean embedding under the last step's beliefs, probs @ embed, where
    `query.has_extra`; elsewhere there is none yet. `encode` is causal and writes.
    """
    return Model(
        init_cache=functools.partial(_init_cache, config),
        apply=functools.partial(_apply, config, True),
        encode=functools.partial(_apply, config, False),
        head=functools.partial(_head, config),
        move=caches.move,
        vocab_size=config.vocab_size,
        eos_ids=config.eos_ids,
        predicts="uniform",
        attention="block_causal",
        block_len=config.canvas_len,
        max_positions=config.max_positions,
        taps=config.taps,
        name=config.name,
    )


class SelfConditioning(nn.Module):
    """Mixes the soft embedding into the embedding, then normalises without a scale."""

    config: Config

    @nn.compact
    def __call__(self, embedding: Array, soft: Array) -> Array:
        config = self.config
        normed = _norm(config, "pre_norm")(soft)
        mixed = _mlp(config, normed, config.mlp_width)
        return parts.rms(embedding + mixed, config.norm_eps)


class Block(nn.Module):
    """Attention, then a dense MLP and a mixture of experts side by side."""

    config: Config
    layer: int
    denoise: bool

    @nn.compact
    def __call__(self, x, positions, slots, visible, cache):
        config = self.config
        branch, cache = self._attend(
            _norm(config, "attention_norm")(x), positions, slots, visible, cache
        )
        x = x + _norm(config, "attention_post_norm")(branch)
        dense = Mlp(config, name="mlp")(_norm(config, "mlp_norm")(x))
        dense = _norm(config, "mlp_post_norm")(dense)
        # The router reads the stream as it is; the experts read their own norm of it.
        normed = _norm(config, "experts_norm")(x)
        mixed = Moe(config, name="experts")(x, normed)
        mixed = _norm(config, "experts_post_norm")(mixed)
        x = x + _norm(config, "mlp_joint_norm")(dense + mixed)
        scales = {
            name: self.param(name, nn.initializers.ones_init(), (1,), jnp.float32)
            for name in ("denoise_scale", "encode_scale")
        }
        scale = scales["denoise_scale" if self.denoise else "encode_scale"]
        return x * scale.astype(x.dtype)[None, None], cache

    def _attend(self, x, positions, slots, visible, cache):
        config = self.config
        batch, num_queries, _ = x.shape
        num_kv_heads, head_dim = config.heads(self.layer)
        is_sliding = config.sliding[self.layer]

        def heads(name: str, num_heads: int) -> Array:
            out = parts.dense(config, num_heads * head_dim, False, name)(x)
            return out.reshape(batch, num_queries, num_heads, head_dim)

        query = heads("query", config.num_heads)
        key = heads("key", num_kv_heads)
        # Full layers share one projection; key and value part ways at the norms.
        value = heads("value", num_kv_heads) if is_sliding else key
        value = parts.rms(value, config.norm_eps)
        rope = config.rope_sliding if is_sliding else config.rope_full
        angles = parts.rotary(rope, head_dim, positions)
        query = parts.rotate(_norm(config, "query_norm")(query), angles)
        key = parts.rotate(_norm(config, "key_norm")(key), angles)
        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        cache = {
            "k": caches.write(cache["k"], slots, key.astype(cache["k"].dtype)),
            "v": caches.write(cache["v"], slots, value.astype(cache["v"].dtype)),
        }
        if is_sliding and self.denoise:
            # prefix  k k k k k k | canvas: of window 4 every lane sees the last three
            start = jnp.maximum(visible.start, visible.stop - (config.window - 1))
            visible = visible._replace(start=start)
        elif is_sliding:
            visible = attention_kernel.narrowed(
                visible, positions, config.window, causal=True
            )
        output = attention_kernel.attention(
            query, cache["k"], cache["v"], visible, key, value, scale=1.0
        )
        output = output.reshape(batch, num_queries, -1)
        return parts.dense(config, config.width, False, "out")(output), cache


class Mlp(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _mlp(self.config, x, self.config.mlp_width)


class Moe(nn.Module):
    """Experts with a normalised router and a scale for each expert."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, normed: Array) -> Array:
        config, experts = self.config, self.config.experts
        width = config.width
        ones = nn.initializers.ones_init()
        scale = self.param("router_scale", ones, (width,), jnp.float32)
        gains = self.param("expert_scale", ones, (experts.num_experts,), jnp.float32)
        lanes = parts.rms(x, config.norm_eps).reshape(-1, width)
        lanes = lanes * (scale.astype(x.dtype) * width**-0.5)[None]
        logits = parts.dense(config, experts.num_experts, False, "router")(lanes)
        probs = jax.nn.softmax(logits.astype(jnp.float32))
        weights, chosen = jax.lax.top_k(probs, experts.top_k)
        weights = weights / weights.sum(-1, keepdims=True)
        weights = weights * gains.astype(jnp.float32)[chosen]
        kernels = parts.expert_kernels(self, experts, width)
        act = parts.ACTIVATIONS[config.activation]
        lanes = normed.reshape(-1, width)
        return parts.mixture(lanes, weights, chosen, kernels, act).reshape(x.shape)


def _mlp(config: Config, x: Array, width: int) -> Array:
    gate = parts.dense(config, width, False, "gate")(x)
    up = parts.dense(config, width, False, "up")(x)
    inner = parts.ACTIVATIONS[config.activation](gate) * up
    return parts.dense(config, config.width, False, "down")(inner)


def _norm(config: Config, name: str | None = None) -> parts.Norm:
    return parts.Norm("rms", config.norm_eps, name=name)


def _init_cache(config: Config, prompt: Prompt, num_slots: int) -> Cache:
    batch = prompt.tokens.shape[0]
    cache = []
    for layer in range(config.num_layers):
        num_kv_heads, head_dim = config.heads(layer)
        shape = (batch, num_kv_heads, num_slots, head_dim)
        leaf = jnp.zeros(shape, config.dtype)
        cache.append({"k": leaf, "v": leaf})
    return tuple(cache)


def _apply(
    config: Config,
    denoise: bool,
    params: Params,
    query: Query,
    cache: Cache,
) -> tuple[Output, Cache]:
    scale = jnp.asarray(math.sqrt(config.width), config.dtype)
    stream = params["embed"][query.tokens].astype(config.dtype) * scale
    if denoise:
        soft = jnp.zeros_like(stream)
        if query.extra is not None:
            soft = query.extra.astype(config.dtype) * scale
            if query.has_extra is not None:
                soft = jnp.where(query.has_extra[:, :, None], soft, 0)
        mix = SelfConditioning(config)
        stream = parts.applied(mix, params["self_conditioning"], stream, soft)
    taps = {"embed": stream} if "embed" in config.taps else {}
    cache = list(cache)
    for layer in range(config.num_layers):
        stream, cache[layer] = parts.applied(
            Block(config, layer, denoise),
            params[f"layer_{layer}"],
            stream,
            query.positions,
            query.slots,
            query.visible,
            cache[layer],
        )
        if f"layer_{layer}" in config.taps:
            taps[f"layer_{layer}"] = stream
    hidden = parts.applied(_norm(config), params["norm"], stream)
    return Output(hidden, taps), tuple(cache)


def _head(config: Config, params: Params) -> Head:
    return Head(params["embed"], None, 1.0, config.logit_soft_cap)
