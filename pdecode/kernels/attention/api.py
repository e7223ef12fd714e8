"""Attention of a few queries over a slot cache: the one function models call.

`reference.py` holds the oracle, `plain.py` the plain path of every platform ("xla"),
`tpu.py` and `gpu.py` a kernel each. What is chosen follows the platform a program is
lowered for, not the one that traces it: compiled ahead of time for TPU on a machine
without one, it gets the kernel. On CUDA the kernel takes bfloat16 alone, of 512 slots
or more, or where rows, heads and queries fill the card; float32 was not measured. So a
row's sums there are in an order that its batch decides, as those of XLA's products are.
cuDNN wants the cache transposed, its mask spelled out and no soft cap.
"""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from pdecode.contracts import Visibility
from pdecode.kernels.attention import plain as plain_module
from pdecode.kernels.attention import reference
from pdecode.sharding import context, placement

IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu")

# A cache shorter than this is read whole: there is nothing to skip or to cut in parts.
MIN_KERNEL_SLOTS = 512


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

    `implementation` is one of IMPLEMENTATIONS, or None: the kernel of the platform the
    program is lowered for, TPU or CUDA, if it serves the call, else "xla". On several
    devices the kernel needs the mesh in context (`jax.set_mesh`): it is mapped over
    rows and key heads as `pdecode.sharding.placement` splits them.

    Raises:
      ValueError: an unknown implementation, heads that do not group, or `among`
        without this call's keys.
      NotImplementedError: the implementation asked for cannot serve the call.
    """
    num_heads, num_kv_heads = query.shape[2], key_cache.shape[1]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{num_heads} query heads do not group over {num_kv_heads} key heads"
        )
    if visible.among is not None and (key_new is None or value_new is None):
        raise ValueError("visible.among needs key_new and value_new")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {implementation!r}; known: "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if visible.among is None:
        key_new = value_new = None
    arrays = (query, key_cache, value_cache, visible, key_new, value_new)
    plain = functools.partial(plain_module.attention, scale=scale, soft_cap=soft_cap)
    if implementation == "reference":
        return reference.attention(*arrays, scale=scale, soft_cap=soft_cap)
    if implementation == "xla":
        return plain(*arrays)

    def kernel_of(module):
        kernel = functools.partial(module.attention, scale=scale, soft_cap=soft_cap)
        return functools.partial(_on_each_device, kernel)

    # Pallas is slow to import: not before it is used.
    if implementation == "pallas_gpu":
        from pdecode.kernels.attention import gpu

        return kernel_of(gpu)(*arrays)
    is_short = key_cache.shape[2] < MIN_KERNEL_SLOTS
    if implementation is None and is_short and query.dtype != jnp.bfloat16:
        return plain(*arrays)
    if implementation == "pallas_tpu":
        from pdecode.kernels.attention import tpu

        return kernel_of(tpu)(*arrays)
    kernels = {}
    with contextlib.suppress(NotImplementedError):
        _split_of(key_cache)
        kernels = _gpu_kernel(query, key_cache, kernel_of)
        if not is_short:
            kernels |= _tpu_kernel(query, key_cache, visible, kernel_of)
    if not kernels:
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, **kernels, default=plain)


def _gpu_kernel(query: Array, key_cache: Array, kernel_of: Callable) -> dict:
    """The kernel for CUDA by its platform, if it serves the call and jax has Triton."""
    if query.dtype != jnp.bfloat16:
        return {}
    try:
        from pdecode.kernels.attention import gpu

        gpu.check(query, key_cache)
    except (ImportError, NotImplementedError):
        return {}
    if key_cache.shape[2] < MIN_KERNEL_SLOTS and not gpu.fills(query, key_cache):
        return {}
    return {"cuda": kernel_of(gpu)}


def _tpu_kernel(query: Array, key_cache: Array, visible, kernel_of: Callable) -> dict:
    """The kernel for TPU by its platform, if it serves the call."""
    from pdecode.kernels.attention import tpu

    try:
        tpu.check(query, key_cache, visible)
    except NotImplementedError:
        return {}
    return {"tpu": kernel_of(tpu)}


def _on_each_device(
    kernel: Callable[..., Array], query: Array, key_cache: Array, *others
) -> Array:
    """`kernel` on its part of the rows and heads where a mesh is in context."""
    if context.in_context() is None:
        return kernel(query, key_cache, *others)
    rows, heads = _split_of(key_cache)
    lanes, slots = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
    return jax.shard_map(
        kernel,
        in_specs=(lanes, slots, slots, PartitionSpec(rows), slots, slots),
        out_specs=lanes,
        check_vma=False,
    )(query, key_cache, *others)


def _split_of(key_cache: Array):
    """Mesh axes that split the rows and the key heads, None where nothing does."""
    rows, heads, slots, _ = context.spec(placement.CACHE, key_cache.shape)
    if slots is not None:
        raise NotImplementedError(
            f"the slots of the cache are split over mesh axis {slots!r}, which only "
            "implementation='xla' serves"
        )
    return rows, heads


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
