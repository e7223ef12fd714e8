"""A lean training pass for plain transformers on CPUs, on the parameters of all others.

Same function as `transformer.forward` (a test compares them), written for speed where
there is no accelerator: everything between matmuls is two-dimensional, and the matmuls
of the layers can read bfloat16, which processors with matrix units multiply about three
times faster. Measured on one core of such a processor, forward and backward of a
1.3M-parameter model: 5 thousand tokens a second, against 2.6 thousand.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

from pdecode.contracts import Params
from pdecode.models.config import Config

_HIDDEN = -1e30


def check(config: Config) -> None:
    """Raises ValueError, naming the field, for what this pass does not do."""
    plain = {
        "norm": "rms",
        "norm_offset": 0.0,
        "post_norms": False,
        "activation": "silu",
        "gated": True,
        "mlp_bias": False,
        "qkv_bias": False,
        "out_bias": False,
        "experts": None,
        "embed_scale": None,
        "attention_soft_cap": None,
        "window": None,
        "taps": (),
        "dtype": "float32",
    }
    for field, value in plain.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"the plain pass needs model.{field}={value!r}, not "
                f"{getattr(config, field)!r}; use forward='transformer'"
            )
    rope = config.rope
    if rope is None or rope.dims is not None or rope.columns is not None:
        raise ValueError(
            "the plain pass needs rotary positions of whole heads, on a line; use "
            "forward='transformer'"
        )


def _row_major(x: Array) -> Array:
    # The fast kernels take row-major operands only; left alone, the compiler turns a
    # transpose into a layout and falls back. The barrier keeps it from undoing this.
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    return jax.lax.optimization_barrier(with_layout_constraint(x, layout))


def _narrow(x: Array) -> Array:
    return _row_major(x.astype(jnp.bfloat16))


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


@jax.custom_vjp
def matmul_bfloat16(x: Array, weight: Array) -> Array:
    """float32 [N, M] of float32 [N, E] @ [E, M], operands rounded to bfloat16."""
    return _product(_narrow(x), _narrow(weight))


def _matmul_forward(x, weight):
    x, weight = _narrow(x), _narrow(weight)
    return _product(x, weight), (x, weight)


def _matmul_backward(saved, grad):
    x, weight = saved
    grad = _narrow(grad)
    grad_x = jnp.einsum("nm,em->ne", grad, weight, preferred_element_type=jnp.float32)
    return grad_x, _product(_row_major(x.T), grad)


matmul_bfloat16.defvjp(_matmul_forward, _matmul_backward)
MATMULS = {"float32": jnp.matmul, "bfloat16": matmul_bfloat16}


def _norm(x: Array, weight: Array, eps: float) -> Array:
    scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * scale * weight.reshape((1,) * (x.ndim - 1) + (-1,))


def forward(
    config: Config, params: Params, tokens: Array, matmul_dtype: str = "float32"
) -> Array:
    """Hidden states float32 [B, L, E] of tokens int32 [B, L], after the final norm."""
    matmul = MATMULS[matmul_dtype]
    batch, length = tokens.shape
    num_heads, num_kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    groups, eps = num_heads // num_kv, config.norm_eps
    scale = dim**-0.5 if config.query_scale is None else config.query_scale
    assert config.rope is not None, "`supports` asks for rotary positions"
    angles = np.arange(length)[:, None] * config.rope.frequencies(dim)
    cos = jnp.asarray(np.cos(angles), jnp.float32)[None, :, None, :]
    sin = jnp.asarray(np.sin(angles), jnp.float32)[None, :, None, :]
    # A causal model's blocks are single positions.
    block = np.arange(length) // (config.block_len or 1)
    is_hidden = block[None, :] > block[:, None]
    bias = jnp.where(is_hidden, jnp.float32(_HIDDEN), 0.0)[None, None]

    def rotate(x):
        first, second = jnp.split(x, 2, axis=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate(turned, axis=-1)

    def attend(query, key, value):
        # Query heads of a group are rows of one matmul.
        query = query.reshape(batch, length, num_kv, groups, dim)
        query = query.transpose(0, 2, 3, 1, 4)
        query = query.reshape(batch * num_kv, groups * length, dim)
        key, value = (
            x.transpose(0, 2, 1, 3).reshape(batch * num_kv, length, dim)
            for x in (key, value)
        )
        scores = jnp.einsum("zqd,zkd->zqk", query, key)
        if config.attention != "bidirectional":
            rows = scores.reshape(batch * num_kv, groups, length, length)
            scores = (rows + bias).reshape(scores.shape)
        output = jnp.einsum("zqk,zkd->zqd", jax.nn.softmax(scores), value)
        output = output.reshape(batch, num_kv, groups, length, dim)
        output = output.transpose(0, 3, 1, 2, 4)
        return output.reshape(batch * length, num_heads * dim)

    stream = params["embed"][tokens.reshape(-1)]
    for number in range(config.num_layers):
        layer = params[f"layer_{number}"]
        own, mlp = layer["attention"], layer["mlp"]
        normed = _norm(stream, layer["attention_norm"]["weight"], eps)
        query, key, value = (
            matmul(normed, own[name]["kernel"]).reshape(batch, length, -1, dim)
            for name in ("query", "key", "value")
        )
        if config.qk_norm:
            query = _norm(query, own["query_norm"]["weight"], eps)
            key = _norm(key, own["key_norm"]["weight"], eps)
        output = attend(rotate(query) * scale, rotate(key), value)
        stream = stream + matmul(output, own["out"]["kernel"])
        normed = _norm(stream, layer["mlp_norm"]["weight"], eps)
        gate = jax.nn.silu(matmul(normed, mlp["gate"]["kernel"]))
        up = matmul(normed, mlp["up"]["kernel"])
        stream = stream + matmul(gate * up, mlp["down"]["kernel"])
    stream = _norm(stream, params["norm"]["weight"], eps)
    return stream.reshape(batch, length, -1)
