"""Attention on TPU: one Pallas (Mosaic) kernel that reads the visible blocks only.

Flash attention (Dao et al., 2022, arXiv:2205.14135) over the slots of the cache. The
intervals of a block of queries bound the blocks of slots that any of them sees; the
bounds are prefetched as scalars, so blocks outside are neither copied nor computed. The
keys of the call itself (`Visibility.among`) are one more block of the same softmax.
It compiles for TPU in the tests, which run it in interpret mode; no speed is claimed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pdecode.contracts import Visibility
from pdecode.kernels.attention import plain
from pdecode.kernels.attention.plain import HIDDEN

_LANES = 128  # what the last dimension of a block is a multiple of
_SUBLANES = 16  # and the one before it, for bfloat16 as well
_MAX_ROWS = 512  # query heads of one group times queries, a block
_MAX_SCORES = 1 << 18  # of a block, 1 MiB
_MAX_BLOCK_BYTES = 1 << 20  # of keys; values as much, and each is held twice
_MAX_AMONG = 512


class Sizes(NamedTuple):
    """Static facts of a call; a block is `queries` queries by `slots` slots."""

    queries: int
    slots: int
    scale: float
    soft_cap: float | None
    interpret: bool


def attention(
    query: Array,  # [B, Q, H, D]
    key_cache: Array,  # [B, Hkv, S, D]
    value_cache: Array,  # [B, Hkv, S, D]
    visible: Visibility,
    key_new: Array | None = None,  # [B, Hkv, Q, D]
    value_new: Array | None = None,  # [B, Hkv, Q, D]
    *,
    scale: float,
    soft_cap: float | None = None,
    slots_per_block: int | None = None,
    interpret: bool = False,
) -> Array:
    """`kernels.attention.attention` in one kernel; float32 or bfloat16, float32 sums.

    The gradient is that of the plain path, which it recomputes. `slots_per_block` is a
    multiple of 128 on a TPU (None: as many as fit); `interpret` runs anywhere, slowly.

    Raises NotImplementedError for what `check` refuses.
    """
    check(query, key_cache, visible)
    _, num_queries, num_heads, head_dim = query.shape
    num_slots = key_cache.shape[2]
    groups = num_heads // key_cache.shape[1]
    queries = max(_SUBLANES, _MAX_ROWS // groups // _SUBLANES * _SUBLANES)
    queries = min(queries, _rounded(num_queries, _SUBLANES))
    if slots_per_block is None:
        slots = _MAX_SCORES // (groups * queries)
        slots = min(slots, _MAX_BLOCK_BYTES // (head_dim * key_cache.dtype.itemsize))
        slots_per_block = max(_LANES, slots // _LANES * _LANES)
    slots = min(slots_per_block, num_slots)
    sizes = Sizes(queries, slots, scale, soft_cap, interpret)
    if visible.among is None:
        key_new = value_new = None
    call = functools.partial(_call, sizes=sizes)
    call = plain.with_gradient(call, scale=scale, soft_cap=soft_cap)
    return call(query, key_cache, value_cache, visible, key_new, value_new)


def check(query: Array, key_cache: Array, visible: Visibility) -> None:
    """Raise NotImplementedError with the reason if the kernel cannot serve a call."""
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(
            f"the TPU kernel takes float32 or bfloat16, not {query.dtype}"
        )
    if key_cache.dtype != query.dtype:
        raise NotImplementedError(
            f"the TPU kernel takes one dtype, got queries {query.dtype} and keys "
            f"{key_cache.dtype}"
        )
    if key_cache.shape[2] == 0:
        raise NotImplementedError("the TPU kernel needs cache slots, got none")
    if visible.among is not None and query.shape[1] > _MAX_AMONG:
        raise NotImplementedError(
            f"the TPU kernel holds `among` of at most {_MAX_AMONG} queries, got "
            f"{query.shape[1]}"
        )


# Jitted so that layers of equal shapes trace the kernel once.
@functools.partial(jax.jit, static_argnames="sizes")
def _call(query, keys, values, visible, key_new, value_new, *, sizes: Sizes) -> Array:
    batch, num_queries, num_heads, head_dim = query.shape
    num_kv_heads, num_slots = keys.shape[1:3]
    groups = num_heads // num_kv_heads
    padded = _rounded(num_queries, sizes.queries)
    missing = padded - num_queries
    num_blocks = -(-num_slots // sizes.slots)

    rows = query.reshape(batch, num_queries, num_kv_heads, groups, head_dim)
    rows = rows.transpose(0, 2, 3, 1, 4)  # [B, Hkv, G, Q, D]
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
    ends = ((0, 0), (0, missing))  # queries that pad a block see nothing
    start = jnp.pad(jnp.clip(visible.start, 0, num_slots), ends)
    stop = jnp.pad(jnp.clip(visible.stop, 0, num_slots), ends)
    first, count = _block_range(start, stop, sizes)

    def by_query(*dims):
        return pl.BlockSpec(dims, lambda b, h, i, j, first, count: (b, i, 0))

    def by_head(dims):
        return pl.BlockSpec(dims, lambda b, h, i, j, first, count: (b, h, 0, 0))

    def slot_block(b, i, j, first, count):
        # Past the last block the index stays, and what is there is not copied again.
        return first[b, i] + jnp.minimum(j, jnp.maximum(count[b, i] - 1, 0))

    cached = pl.BlockSpec(
        (None, None, sizes.slots, head_dim),
        lambda b, h, i, j, *range_: (b, h, slot_block(b, i, j, *range_), 0),
    )
    heads = pl.BlockSpec(
        (None, None, groups, sizes.queries, head_dim),
        lambda b, h, i, j, first, count: (b, h, 0, i, 0),
    )
    inputs: dict[str, Any] = {
        "query": (rows, heads),
        "start": (start[:, :, None], by_query(None, sizes.queries, 1)),
        "stop": (stop[:, :, None], by_query(None, sizes.queries, 1)),
        "keys": (keys, cached),
        "values": (values, cached),
    }
    if visible.written is not None:
        inputs["written"] = (
            visible.written.astype(jnp.int32)[:, None, :],
            pl.BlockSpec(
                (None, 1, sizes.slots),
                lambda b, h, i, j, *range_: (b, 0, slot_block(b, i, j, *range_)),
            ),
        )
    if visible.among is not None:
        lanes = _rounded(num_queries, _LANES)
        beside = lanes - num_queries
        among = visible.among.astype(jnp.int32)
        among = jnp.pad(among, ((0, 0), (0, missing), (0, beside)))
        inputs["among"] = (among, by_query(None, sizes.queries, lanes))
        for name, new in (("key_new", key_new), ("value_new", value_new)):
            new = jnp.pad(new, ((0, 0), (0, 0), (0, beside), (0, 0)))
            inputs[name] = (new, by_head((None, None, lanes, head_dim)))

    block_rows = groups * sizes.queries
    output = pl.pallas_call(
        functools.partial(_kernel, tuple(inputs), num_slots, sizes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, num_kv_heads, padded // sizes.queries, num_blocks),
            in_specs=[spec for _, spec in inputs.values()],
            out_specs=heads,
            scratch_shapes=[
                pltpu.VMEM((block_rows, 1), jnp.float32),
                pltpu.VMEM((block_rows, 1), jnp.float32),
                pltpu.VMEM((block_rows, head_dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(rows.shape, query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=sizes.interpret,
    )(first, count, *(array for array, _ in inputs.values()))
    output = output[:, :, :, :num_queries].transpose(0, 3, 1, 2, 4)
    return output.reshape(query.shape)


def _block_range(start: Array, stop: Array, sizes: Sizes) -> tuple[Array, Array]:
    """First block of slots that each block of queries sees, and how many, int32."""
    shape = (start.shape[0], -1, sizes.queries)
    sees = start < stop
    low = jnp.where(sees, start, jnp.iinfo(jnp.int32).max).reshape(shape).min(2)
    high = jnp.where(sees, stop, 0).reshape(shape).max(2)
    first = low // sizes.slots
    count = jnp.maximum(-(-high // sizes.slots) - first, 0)
    return jnp.where(count > 0, first, 0).astype(jnp.int32), count.astype(jnp.int32)


def _kernel(names, num_slots, sizes, first, count, *refs):
    refs, (output, top, total, acc) = dict(zip(names, refs)), refs[len(names) :]
    row, queries, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    groups, _, head_dim = refs["query"].shape
    # Mosaic multiplies float32 in bfloat16 passes unless told otherwise.
    exact = refs["query"].dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None

    def absorb(keys, values, seen):  # [K, D], [K, D], bool [queries, K]
        rows = refs["query"][...].reshape(groups * sizes.queries, head_dim)
        score = sizes.scale * jax.lax.dot_general(
            rows,
            keys,
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        if sizes.soft_cap is not None:
            score = sizes.soft_cap * jnp.tanh(score / sizes.soft_cap)
        score = score.reshape(groups, sizes.queries, -1)
        score = jnp.where(seen[None], score, HIDDEN)
        score = score.reshape(groups * sizes.queries, -1)
        before = top[...]
        now = jnp.maximum(before, score.max(1, keepdims=True))
        # A query that has seen nothing yet is at HIDDEN, and its weights are not 1.
        weight = jnp.where(score > 0.5 * HIDDEN, jnp.exp(score - now), 0.0)
        shrink = jnp.exp(before - now)
        top[...] = now
        total[...] = shrink * total[...] + weight.sum(1, keepdims=True)
        acc[...] = shrink * acc[...] + jax.lax.dot(
            weight.astype(values.dtype),
            values,
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full(top.shape, HIDDEN, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)
        if "among" in refs:
            seen = refs["among"][...] != 0
            absorb(refs["key_new"][...], refs["value_new"][...], seen)

    @pl.when(step < count[row, queries])
    def _():
        begin = (first[row, queries] + step) * sizes.slots
        shape = (sizes.queries, sizes.slots)
        slot = begin + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        seen = (refs["start"][...] <= slot) & (slot < refs["stop"][...])
        if "written" in refs:
            seen &= refs["written"][...] != 0
        values = refs["values"][...]
        if num_slots % sizes.slots:
            # What lies past the end of the cache may be anything, and 0 * NaN is NaN.
            shape = (sizes.slots, 1)
            slot = begin + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            values = jnp.where(slot < num_slots, values, 0)
        absorb(refs["keys"][...], values, seen)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        found = acc[...] / jnp.where(total[...] > 0, total[...], 1.0)
        found = found.reshape(groups, sizes.queries, head_dim)
        output[...] = found.astype(output.dtype)


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
