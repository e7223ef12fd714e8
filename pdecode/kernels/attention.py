"""Attention of a few queries over a slot cache: the one function models call.

`reference.py` holds the oracle; backends live beside this file and share its signature
without `implementation`. A backend that cannot serve a call raises NotImplementedError:
with `implementation=None` the next one is tried, asked for by name it is an error.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Visibility
from pdecode.kernels import reference

# Finite, so that a query that sees nothing stays finite before its weights are zeroed.
_HIDDEN = -1e30


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
    implementation: str | None = None,
) -> Array:
    """Output [B, Q, H, D] in the query's dtype; the softmax is in float32.

    Each query sees the written cache slots of its interval and, when `visible.among` is
    given, the keys of this call that `among` names; a query that sees nothing gets
    zero. Positions are the caller's business: a sliding window is a narrower interval
    (`narrowed`). Query head h reads key head h // (H / Hkv). Scores are
    cap(scale * q . k), with cap(x) = soft_cap * tanh(x / soft_cap).

    Raises:
      ValueError: an unknown implementation, heads that do not group, or `among`
        without this call's keys.
    """
    num_heads, num_kv_heads = query.shape[2], key_cache.shape[1]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{num_heads} query heads do not group over {num_kv_heads} key heads"
        )
    if visible.among is not None and (key_new is None or value_new is None):
        raise ValueError("visible.among needs key_new and value_new")
    if implementation is not None and implementation not in BACKENDS:
        raise ValueError(
            f"unknown implementation {implementation!r}; known: {', '.join(BACKENDS)}"
        )
    names = _preferred() if implementation is None else (implementation,)
    refusals = []
    for name in names:
        try:
            return BACKENDS[name](
                query,
                key_cache,
                value_cache,
                visible,
                key_new,
                value_new,
                scale=scale,
                soft_cap=soft_cap,
            )
        except NotImplementedError as refusal:
            refusals.append(refusal)
    raise ExceptionGroup("no attention backend serves this call", refusals)


def narrowed(
    visible: Visibility, positions: Array, window: int, *, causal: bool
) -> Visibility:
    """`visible` cut to keys at most window - 1 places from the query.

    `positions` int32 [B, Q]. Stored keys must have slot == position, which prefix and
    canvas layouts keep; the keys of this call are cut by their own positions. A causal
    model cuts behind only: what lies ahead is `visible`'s decision.
    """
    behind = positions - window + 1
    ahead = positions + window
    among = visible.among
    if among is not None:
        key = positions[:, None, :]
        among = among & (key >= behind[:, :, None])
        if not causal:
            among = among & (key < ahead[:, :, None])
    return Visibility(
        start=jnp.maximum(visible.start, behind),
        stop=visible.stop if causal else jnp.minimum(visible.stop, ahead),
        written=visible.written,
        among=among,
    )


def xla(
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
    if visible.among is not None:
        parts.append((key_new, value_new, visible.among))

    scores = []
    for keys, _, seen in parts:
        score = scale * jnp.einsum(
            "bhrd,bhkd->bhrk", rows, keys, preferred_element_type=jnp.float32
        )
        if soft_cap is not None:
            score = soft_cap * jnp.tanh(score / soft_cap)
        score = score.reshape(batch, num_kv_heads, groups, num_queries, -1)
        scores.append(jnp.where(seen[:, None, None], score, _HIDDEN))
    top = jnp.full(scores[0].shape[:-1] + (1,), _HIDDEN, jnp.float32)
    for score in scores:
        top = jnp.maximum(top, jnp.max(score, axis=-1, keepdims=True, initial=_HIDDEN))

    output, total = 0.0, 0.0
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


BACKENDS: dict[str, Callable[..., Array]] = {
    "reference": reference.attention,
    "xla": xla,
}


def _preferred() -> tuple[str, ...]:
    """Backends in the order they are tried when none is named."""
    return ("xla",)
