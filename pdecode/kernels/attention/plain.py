"""Attention in plain jnp for every platform: matmuls on the cache as it lies."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Visibility
from pdecode.kernels.attention import reference

# Finite, so that a query that sees nothing stays finite before its weights are zeroed.
HIDDEN = -1e30


def attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    visible: Visibility,
    key_new: Array | None = None,
    value_new: Array | None = None,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> Array:
    """Two batched matmuls on the cache as it lies, and two on this call's keys.

    Nothing the size of the cache is copied, repeated or transposed: the query heads of
    a group become rows of one matmul, and cached and new keys share a softmax by its
    maximum and sum instead of being joined.
    """
    batch, num_queries, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[1]
    groups = num_heads // num_kv_heads
    rows = query.reshape(batch, num_queries, num_kv_heads, groups, head_dim)
    rows = rows.transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, num_kv_heads, groups * num_queries, head_dim)

    parts = [
        (key_cache, value_cache, reference.visible_mask(visible, key_cache.shape[2]))
    ]
    if visible.among is not None and key_new is not None and value_new is not None:
        parts.append((key_new, value_new, visible.among))

    scores = []
    for keys, _, seen in parts:
        score = scale * jnp.einsum(
            "bhrd,bhkd->bhrk", rows, keys, preferred_element_type=jnp.float32
        )
        if soft_cap is not None:
            score = soft_cap * jnp.tanh(score / soft_cap)
        score = score.reshape(batch, num_kv_heads, groups, num_queries, -1)
        scores.append(jnp.where(seen[:, None, None], score, HIDDEN))
    top = jnp.full(scores[0].shape[:-1] + (1,), HIDDEN, jnp.float32)
    for score in scores:
        top = jnp.maximum(top, jnp.max(score, axis=-1, keepdims=True, initial=HIDDEN))

    total = jnp.zeros_like(top)
    output = jnp.zeros(rows.shape, jnp.float32)
    for (_, values, seen), score in zip(parts, scores, strict=True):
        weight = jnp.where(seen[:, None, None], jnp.exp(score - top), 0.0)
        total = total + jnp.sum(weight, axis=-1, keepdims=True)
        weight = weight.reshape(batch, num_kv_heads, groups * num_queries, -1)
        output = output + jnp.einsum(
            "bhrk,bhkd->bhrd",
            weight.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
    output = output.reshape(batch, num_kv_heads, groups, num_queries, head_dim)
    output = output / jnp.where(total > 0, total, 1.0)
    output = output.transpose(0, 3, 1, 2, 4)
    return output.reshape(batch, num_queries, num_heads, head_dim).astype(query.dtype)


def weights(
    query: Array,
    key_cache: Array,
    visible: Visibility,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> Array:
    """The weights that `attention` gives to slots, mean over heads, float32 [B, Q, S].

    Those of a query that sees nothing are zero. For calls without `visible.among`.
    """
    batch, num_queries, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[1]
    rows = query.reshape(
        batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim
    )
    score = scale * jnp.einsum(
        "bqhgd,bhkd->bhgqk", rows, key_cache, preferred_element_type=jnp.float32
    )
    if soft_cap is not None:
        score = soft_cap * jnp.tanh(score / soft_cap)
    seen = reference.visible_mask(visible, key_cache.shape[2])[:, None, None]
    top = jnp.max(score, -1, keepdims=True, where=seen, initial=HIDDEN)
    share = jnp.where(seen, jnp.exp(score - top), 0.0)
    total = share.sum(-1, keepdims=True)
    return (share / jnp.where(total > 0, total, 1.0)).mean((1, 2))


def with_gradient(
    kernel: Callable[..., Array], *, scale: float, soft_cap: float | None
) -> Callable[..., Array]:
    """`kernel(query, keys, values, visible, key_new, value_new)`, differentiable.

    The backward pass recomputes the plain path and is its gradient; reverse mode only.
    """
    call = jax.custom_vjp(kernel)

    def forward(*arrays):
        return call(*arrays), arrays

    def backward(arrays, gradient):
        query, keys, values, visible, *new = arrays
        plain = functools.partial(attention, scale=scale, soft_cap=soft_cap)
        _, pull = jax.vjp(
            lambda query, keys, values, new: plain(query, keys, values, visible, *new),
            *(query, keys, values, new),
        )
        query, keys, values, new = pull(gradient)
        return query, keys, values, None, *new

    call.defvjp(forward, backward)
    return call
