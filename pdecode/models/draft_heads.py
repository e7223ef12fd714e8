"""Blockwise heads: one call of a frozen target predicts several tokens ahead.

Stern, Shazeer, Uszkoreit, 2018, arXiv:1811.03115, with one small residual MLP a head
instead of one wide layer for all, the target's own unembedding, and a frozen target.
At the hidden state that predicts position t + 1, head k (counted from one, index k - 1)
predicts position t + 1 + k.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import DraftHeads, Params

_EPS = 1e-6


def init(num_heads: int, width: int, inner_width: int, key: Array) -> Params:
    """Float32 parameters; every head starts as the target's own prediction."""
    up = jax.random.normal(key, (num_heads, width, inner_width), jnp.float32)
    return {
        "up": up * width**-0.5,
        "down": jnp.zeros((num_heads, inner_width, width), jnp.float32),
        "norm": jnp.ones((num_heads, width), jnp.float32),
    }


def _apply(params: Params, hidden: Array) -> Array:
    # Heads are a batch axis of both matmuls: joined into one wide matmul instead, the
    # weights are transposed in every call.
    spread = jnp.broadcast_to(hidden, (params["up"].shape[0], *hidden.shape))
    inner = jnp.einsum("k...e,kef->k...f", spread, params["up"])
    change = jnp.einsum("k...f,kfe->k...e", jax.nn.silu(inner), params["down"])
    value = jnp.moveaxis(spread + change, 0, -2).astype(jnp.float32)
    square = jnp.mean(jnp.square(value), axis=-1, keepdims=True)
    norm = params["norm"].reshape((1,) * (hidden.ndim - 1) + params["norm"].shape)
    return (value * jax.lax.rsqrt(square + _EPS) * norm).astype(hidden.dtype)


@functools.cache
def make_heads(num_heads: int) -> DraftHeads:
    """The record of `num_heads` heads; equal numbers give the same object."""
    if num_heads < 1:
        raise ValueError(f"num_heads={num_heads} must be at least 1")
    return DraftHeads(num_heads, _apply)
