"""Plain-jnp oracle of attention: exactly the visibility semantics, nothing clever.

Every backend of `kernels.attention` is tested against this file, so it repeats keys and
values per query head, joins cached and new keys, and builds the whole mask.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Visibility


def visible_mask(visible: Visibility, num_slots: int) -> Array:
    """Cache slots that each query sees, bool [B, Q, S].

    A slot is visible if start <= slot < stop and it is written. The keys of the call
    itself are not covered when `visible.among` is given: that mask is their own.
    """
    slot = jnp.arange(num_slots, dtype=jnp.int32)[None, None, :]
    seen = (visible.start[:, :, None] <= slot) & (slot < visible.stop[:, :, None])
    if visible.written is not None:
        seen &= visible.written[:, None, :]
    return seen


def attention(
    query: Array,  # [B, Q, H, D]
    key_cache: Array,  # [B, Hkv, S, D]  holds this call's stored keys
    value_cache: Array,  # [B, Hkv, S, D]
    visible: Visibility,
    key_new: Array | None = None,  # [B, Hkv, Q, D]  read only with `visible.among`
    value_new: Array | None = None,  # [B, Hkv, Q, D]
    *,
    scale: float,
    soft_cap: float | None = None,
) -> Array:
    """Attention output [B, Q, H, D] in the query's dtype; softmax in float32.

    A query that sees nothing gets zero. Query head h reads key head h // (H / Hkv).
    """
    keys, values = key_cache, value_cache
    seen = visible_mask(visible, key_cache.shape[2])
    if visible.among is not None and key_new is not None and value_new is not None:
        keys = jnp.concatenate([keys, key_new], axis=2)
        values = jnp.concatenate([values, value_new], axis=2)
        seen = jnp.concatenate([seen, visible.among], axis=2)
    repeats = query.shape[2] // keys.shape[1]
    keys = jnp.repeat(keys, repeats, axis=1).astype(jnp.float32)
    values = jnp.repeat(values, repeats, axis=1).astype(jnp.float32)
    scores = scale * jnp.einsum(
        "bqhd,bhkd->bhqk",
        query.astype(jnp.float32),
        keys,
        precision=jax.lax.Precision.HIGHEST,
    )
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    seen = seen[:, None, :, :]
    scores = jnp.where(seen, scores, -jnp.inf)
    # The maximum of nothing is -inf, and -inf - -inf is NaN.
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    output = jnp.einsum(
        "bhqk,bhkd->bqhd", weights, values, precision=jax.lax.Precision.HIGHEST
    )
    return output.astype(query.dtype)
