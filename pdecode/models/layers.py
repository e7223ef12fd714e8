"""The parts of a transformer layer: norms, rotary positions, attention, MLP."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Params, SlotRun, Visibility
from pdecode.kernels.attention import api as attention_kernel
from pdecode.models import fusing
from pdecode.models.config import Config, Experts, Rope

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def rotary(rope: Rope, head_dim: int, positions: Array) -> tuple[Array, Array]:
    """Cosine and sine of each pair's angle, float32 [B, Q, 1, pairs].

    `positions` int32 [B, Q].
    """
    freqs = jnp.asarray(rope.frequencies(head_dim), jnp.float32)[None, None, None, :]
    axes = [positions]
    if rope.columns is not None:
        # Floors: what is in front of the grid has row -1, not row 0.
        axes = jnp.divmod(positions - rope.before, rope.columns)
    turns = [axis[:, :, None, None].astype(jnp.float32) * freqs for axis in axes]
    angles = jnp.concatenate(turns, -1) if len(turns) > 1 else turns[0]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    """Heads [B, Q, H, D] turned by their positions, in float32, in their own dtype.

    What lies behind the dimensions that the angles are of stays as it is.
    """
    width = 2 * angles[0].shape[-1]
    if x.dtype == jnp.float32:
        turned = _turned_halves(x[..., :width], *angles)
    else:  # what GPUs decode in
        turned = jax.lax.platform_dependent(
            x[..., :width], *angles, cuda=_turned_pairs, default=_turned_halves
        )
    if width == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., width:]], axis=-1)


def _turned_halves(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _turned_pairs(x: Array, cos: Array, sin: Array) -> Array:
    """The same numbers: XLA for CUDA makes kernels of each half that is joined."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    sign = jnp.expand_dims(jnp.array([[-1.0], [1.0]]), tuple(range(x.ndim - 1)))
    cos, sin = cos[..., None, :], sign * sin[..., None, :]
    turned = pairs * cos + jnp.flip(pairs, -2) * sin
    return turned.reshape(x.shape).astype(x.dtype)


def rms(x: Array, eps: float) -> Array:
    """`x` divided by the root mean square of its last axis, in float32, no scale."""
    value = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(value), axis=-1, keepdims=True)
    return (value * jax.lax.rsqrt(square + eps)).astype(x.dtype)


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich, 2019, arXiv:1910.07467) or layer norm, in float32.

    "centered" is a layer norm without a bias.
    """

    kind: str = "rms"
    eps: float = 1e-6
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = nn.initializers.constant(1.0 - self.offset)
        weight = self.param("weight", start, (x.shape[-1],), jnp.float32)
        value = x.astype(jnp.float32)
        if self.kind != "rms":
            value = value - jnp.mean(value, axis=-1, keepdims=True)
        square = jnp.mean(jnp.square(value), axis=-1, keepdims=True)
        value = value * jax.lax.rsqrt(square + self.eps)
        scale = (self.offset + weight.astype(jnp.float32)).reshape(
            (1,) * (x.ndim - 1) + (-1,)
        )
        value = value * scale
        if self.kind == "layer":
            bias = self.param(
                "bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32
            )
            value = value + bias.reshape(scale.shape)
        return value.astype(x.dtype)


def norm(config: Config, name: str | None = None) -> Norm:
    return Norm(config.norm, config.norm_eps, config.norm_offset, name=name)


def applied(module: nn.Module, params: Params, *inputs: Any) -> Any:
    """What `module` makes of `inputs` with these parameters, and nothing mutable."""
    return module.apply({"params": params}, *inputs)


class Dense(nn.Module):
    """`x` times a kernel [K, N], and what adapters beside it add, and a bias.

    A kernel in int8 has a "scale" [N] beside it (`models.int8`): its columns are scaled
    when they are multiplied, so that what is read is the codes.
    """

    features: int
    use_bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        kernel = self.param("kernel", start, (x.shape[-1], self.features), jnp.float32)
        x = x.astype(self.dtype)
        out = _dot(x, kernel.astype(x.dtype))

        def of_columns(value: Array) -> Array:
            return value.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))

        if self.has_variable("params", "scale"):
            out = out * of_columns(self.get_variable("params", "scale"))
        if self.has_variable("params", "lora_a"):  # `models.adapters`
            low = _dot(x, self.get_variable("params", "lora_a").astype(x.dtype))
            out = out + _dot(low, self.get_variable("params", "lora_b").astype(x.dtype))
        if self.use_bias:
            start = nn.initializers.zeros_init()
            bias = self.param("bias", start, (self.features,), jnp.float32)
            out = out + of_columns(bias)
        return out


def dense(config: Any, features: int, bias: bool, name: str) -> Dense:
    return Dense(features, bias, config.dtype, name=name)


def _dot(x: Array, kernel: Array) -> Array:
    """`x` [..., K] times a kernel [K, N].

    XLA:CPU multiplies a single vector on one core, and a call of one token waits for
    that core's memory: two halves of the contraction take two (a fifth less time at 30
    million parameters).
    """
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    plain = functools.partial(jax.lax.dot_general, dimension_numbers=dims)
    size, features = kernel.shape
    if x.size != size or size % 2:
        return plain(x, kernel)

    def halves(x, kernel):
        halved = x.reshape(2, -1), kernel.reshape(2, -1, features)
        first, second = jnp.einsum("hk,hkn->hn", *halved)
        return (first + second).reshape(*x.shape[:-1], features)

    return jax.lax.platform_dependent(x, kernel, cpu=halves, default=plain)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245) over a cache."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Array,  # [B, Q, E]
        angles: tuple[Array, Array] | None,
        visible: Visibility,
        slots: Array | SlotRun | None,  # see `Query.slots`
        cache: dict[str, Any] | None,  # leaves [B, Hkv, S, D]
    ) -> tuple[Array, dict[str, Any] | None]:
        """Without a cache this call's own keys are the slots 0 .. Q-1."""
        config = self.config
        batch, num_queries, _ = x.shape

        def heads(name: str, num_heads: int) -> Array:
            out = dense(config, num_heads * config.head_dim, config.qkv_bias, name)(x)
            return out.reshape(batch, num_queries, num_heads, config.head_dim)

        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        if self.has_variable("params", fusing.QKV):
            whole = heads(fusing.QKV, num_heads + 2 * num_kv_heads)
            query, key, value = jnp.split(
                whole, [num_heads, num_heads + num_kv_heads], axis=2
            )
        else:
            query = heads("query", num_heads)
            key, value = heads("key", num_kv_heads), heads("value", num_kv_heads)
        if config.qk_norm:
            query = Norm("rms", config.norm_eps, config.norm_offset, name="query_norm")(
                query
            )
            key = Norm("rms", config.norm_eps, config.norm_offset, name="key_norm")(key)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        self.sow("intermediates", "queries", query)  # for who asks for the weights
        cache, key, value = kept(cache, visible, slots, key, value)
        scale = config.query_scale
        output = attention_kernel.attention(
            query,
            caches.floats(cache["k"]),
            caches.floats(cache["v"]),
            visible,
            key,
            value,
            scale=config.head_dim**-0.5 if scale is None else scale,
            soft_cap=config.attention_soft_cap,
        )
        output = output.reshape(batch, num_queries, -1)
        return dense(config, config.width, config.out_bias, "out")(output), cache


def kept(cache: dict[str, Any] | None, visible, slots, key: Array, value: Array):
    """(cache, key, value) of a call: what its queries see, and this call's own part."""
    if cache is not None:
        # Writes happen before reads: a lane may see what this call stores.
        stored_key, key = caches.store(cache["k"], slots, key)
        stored_value, value = caches.store(cache["v"], slots, value)
        return {"k": stored_key, "v": stored_value}, key, value
    if visible.among is not None:
        # Every key is seen through `among`; the interval has nothing to show.
        return {"k": key[:, :, :0], "v": value[:, :, :0]}, key, value
    return {"k": key, "v": value}, key, value


class Mlp(nn.Module):
    """Gated MLP (SwiGLU: Shazeer, 2020, arXiv:2002.05202), or the plain one."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        act, width = ACTIVATIONS[config.activation], config.mlp_width

        def opened(name: str, features: int) -> Array:
            return dense(config, features, config.mlp_bias, name)(x)

        if self.has_variable("params", fusing.GATE_UP):
            gate, up = jnp.split(opened(fusing.GATE_UP, 2 * width), 2, axis=-1)
            up = act(gate) * up
        elif config.gated:
            up = opened("up", width)
            up = act(opened("gate", width)) * up
        else:
            up = act(opened("up", width))
        return dense(config, config.width, config.mlp_bias, "down")(up)


class Moe(nn.Module):
    """Mixture of gated MLPs (Shazeer et al., 2017, arXiv:1701.06538), dropless.

    Lanes are sorted by expert and each expert multiplies its own run of them, so there
    is no capacity and no lane is dropped whatever the others choose.
    """

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, experts = self.config, self.config.experts
        assert experts is not None, "a layer without experts has an Mlp"
        lanes = x.reshape(-1, config.width)
        # Sigmoid scores choose by small margins: their models' routers are float32.
        exact = dataclasses.replace(config, dtype="float32")
        own = exact if experts.scores == "sigmoid" else config
        router = dense(own, experts.num_experts, False, "router")(lanes)
        bias = None
        if experts.biased:
            start, shape = nn.initializers.zeros_init(), (experts.num_experts,)
            bias = self.param("router_bias", start, shape, jnp.float32)
        weights, chosen = routed(experts, router.astype(jnp.float32), bias)
        kernels = expert_kernels(self, experts, config.width)
        act = ACTIVATIONS[config.activation]
        out = mixture(lanes, weights, chosen, kernels, act)
        if experts.shared_width:
            shared = dataclasses.replace(config, mlp_width=experts.shared_width)
            out = out + Mlp(shared, name="shared")(lanes)
        return out.reshape(x.shape)


def routed(
    experts: Experts, logits: Array, bias: Array | None = None
) -> tuple[Array, Array]:
    """Weights float32 [T, K] and ids int32 [T, K] of each lane's experts.

    `logits` float32 [T, N] are the router's, `bias` [N] what the choice adds to them.
    """
    is_sigmoid = experts.scores == "sigmoid"
    scores = jax.nn.sigmoid(logits) if is_sigmoid else jax.nn.softmax(logits)
    ranked = scores if bias is None else scores + bias.astype(jnp.float32)[None]
    if experts.num_groups > 1:
        each = ranked.reshape(len(ranked), experts.num_groups, -1)
        best = jax.lax.top_k(each, 2)[0].sum(-1)
        _, groups = jax.lax.top_k(best, experts.top_groups)
        is_in = jax.nn.one_hot(groups, experts.num_groups).sum(1) > 0
        ranked = jnp.where(is_in[:, :, None], each, -jnp.inf).reshape(ranked.shape)
    _, chosen = jax.lax.top_k(ranked, experts.top_k)
    weights = jnp.take_along_axis(scores, chosen, -1)
    if experts.normalized:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return weights * experts.scale, chosen


def expert_kernels(module: nn.Module, experts: Experts, width: int) -> list[Array]:
    """Parameters gate and up [N, E, F] and down [N, F, E] of `module`."""
    opening = (experts.num_experts, width, experts.width)
    closing = (experts.num_experts, experts.width, width)
    start = nn.initializers.variance_scaling(
        1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0
    )
    shapes = {"gate": opening, "up": opening, "down": closing}
    return [
        module.param(name, start, shape, jnp.float32) for name, shape in shapes.items()
    ]


def mixture(lanes, weights, chosen, kernels, act) -> Array:
    """Weighted sum of chosen experts, [T, E] in the dtype of `lanes` [T, E].

    `weights` float32 [T, K] and `chosen` int32 [T, K] name each lane's experts;
    `kernels` are gate and up [N, E, F] and down [N, F, E].
    """
    num_lanes, top_k = chosen.shape
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    gate, up, down = (kernel.astype(lanes.dtype) for kernel in kernels)
    sizes = jnp.bincount(flat, length=gate.shape[0]).astype(jnp.int32)
    inputs = lanes[order // top_k]
    inner = act(jax.lax.ragged_dot(inputs, gate, sizes))
    inner = inner * jax.lax.ragged_dot(inputs, up, sizes)
    outputs = jax.lax.ragged_dot(inner, down, sizes).astype(jnp.float32)
    # Undo the sort: lane t's k-th output is row t * K + k again.
    outputs = outputs[jnp.argsort(order)].reshape(num_lanes, top_k, -1)
    return (outputs * weights[:, :, None]).sum(1).astype(lanes.dtype)


class Block(nn.Module):
    """One layer: attention and an MLP, each on a normed copy of the stream."""

    config: Config

    @nn.compact
    def __call__(self, x, angles, visible, slots, cache):
        config = self.config
        branch, cache = Attention(config, name="attention")(
            norm(config, "attention_norm")(x), angles, visible, slots, cache
        )
        if config.post_norms:
            branch = norm(config, "attention_post_norm")(branch)
        x = x + branch
        inner = Mlp if config.experts is None else Moe
        branch = inner(config, name="mlp")(norm(config, "mlp_norm")(x))
        if config.post_norms:
            branch = norm(config, "mlp_post_norm")(branch)
        return x + branch, cache


def attended(config: Config, params: Params, x, angles, visible, slots, cache):
    """What the attention of a `Block` with `params` adds to `x`, and its cache."""
    normed = applied(norm(config), params["attention_norm"], x)
    branch, cache = applied(
        Attention(config), params["attention"], normed, angles, visible, slots, cache
    )
    if config.post_norms:
        branch = applied(norm(config), params["attention_post_norm"], branch)
    return branch, cache


def mixed(config: Config, params: Params, x: Array) -> Array:
    """What the MLP of a `Block` with `params` adds to `x`."""
    inner = Mlp if config.experts is None else Moe
    normed = applied(norm(config), params["mlp_norm"], x)
    branch = applied(inner(config), params["mlp"], normed)
    if config.post_norms:
        branch = applied(norm(config), params["mlp_post_norm"], branch)
    return branch
