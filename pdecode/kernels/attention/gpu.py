"""Attention on NVIDIA GPUs: a Pallas kernel in its Triton dialect.

Flash-decoding (Dao et al., 2023): the visible slots are cut into parts that run side by
side, and the parts are joined by their maximum and sum; where rows and heads fill the
GPU by themselves there is one part, and the kernel writes what the caller gets. Queries
are read and written as they lie, so nothing is transposed, padded or stored beside it.
Tests run it in interpret mode and lower it for CUDA; on an H200 it ran under jax 0.11.2
and was as near the reference as "xla" is. jax 0.11 deprecates Pallas on Triton and
names no release that drops it; its successor, Mosaic GPU, serves Hopper and later only
and was not tried here. Where a jax has no Triton dialect any more, CUDA gets "xla".
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pdecode.contracts import Visibility
from pdecode.kernels.attention import plain
from pdecode.kernels.attention.plain import HIDDEN

_MIN_ROWS, _MAX_ROWS = 16, 64  # queries times heads of a group, a block
_SLOTS = 64  # a block
_PROGRAMS = 132  # enough to fill a large GPU
_MAX_PARTS = 16


class Sizes(NamedTuple):
    """Static facts of a call."""

    rows: int  # of a block
    slots: int  # of a block
    parts: int
    groups: int  # query heads of a key head
    scale: float
    soft_cap: float | None
    interpret: bool


def check(query: Array, key_cache: Array) -> None:
    """Raise NotImplementedError with the reason if the kernel cannot serve a call."""
    head_dim = query.shape[3]
    if query.dtype not in (jnp.float32, jnp.bfloat16) or key_cache.dtype != query.dtype:
        raise NotImplementedError(
            f"the GPU kernel takes float32 or bfloat16, queries and keys alike, not "
            f"{query.dtype} and {key_cache.dtype}"
        )
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise NotImplementedError(
            f"the GPU kernel needs a head width that is a power of two, at least 16, "
            f"not {head_dim}"
        )
    if key_cache.shape[2] == 0:
        raise NotImplementedError("the GPU kernel needs cache slots, got none")


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
    slots_per_block: int = _SLOTS,
    interpret: bool = False,
) -> Array:
    """`kernels.attention.attention` in one kernel; float32 or bfloat16, float32 sums.

    The gradient is that of the plain path, which it recomputes. `slots_per_block` is a
    power of two, at least 16 on a GPU; `interpret` runs anywhere, slowly.

    Raises NotImplementedError for what `check` refuses.
    """
    check(query, key_cache)
    groups, num_slots = query.shape[2] // key_cache.shape[1], key_cache.shape[2]
    rows, programs = _rows(query, key_cache)
    parts = min(-(-_PROGRAMS // programs), _MAX_PARTS, -(-num_slots // slots_per_block))
    sizes = Sizes(rows, slots_per_block, parts, groups, scale, soft_cap, interpret)
    if visible.among is None:
        key_new = value_new = None
    call = functools.partial(_call, sizes=sizes)
    call = plain.with_gradient(call, scale=scale, soft_cap=soft_cap)
    return call(query, key_cache, value_cache, visible, key_new, value_new)


def fills(query: Array, key_cache: Array) -> bool:
    """Whether a call fills a large GPU without its slots being cut in parts."""
    return _rows(query, key_cache)[1] >= _PROGRAMS


def _rows(query: Array, key_cache: Array) -> tuple[int, int]:
    """Rows of a block, and how many blocks there are over the batch and key heads."""
    batch, num_queries, num_heads, _ = query.shape
    num_kv_heads = key_cache.shape[1]
    num_rows = num_queries * (num_heads // num_kv_heads)
    rows = _MIN_ROWS
    while rows < min(num_rows, _MAX_ROWS):
        rows *= 2
    return rows, batch * num_kv_heads * -(-num_rows // rows)


@functools.partial(jax.jit, static_argnames="sizes")
def _call(query, keys, values, visible, key_new, value_new, *, sizes: Sizes) -> Array:
    batch, num_queries, num_heads, head_dim = query.shape
    num_kv_heads, num_slots = keys.shape[1:3]
    num_blocks = -(-num_queries * sizes.groups // sizes.rows)

    def of_row(*dims):  # an array [B, *dims], of which a program gets its row
        zeros = (0,) * len(dims)
        return pl.BlockSpec((None, *dims), lambda b, h, i, p: (b, *zeros))

    def of_head(*dims):  # an array [B, Hkv, *dims]
        zeros = (0,) * len(dims)
        return pl.BlockSpec((None, None, *dims), lambda b, h, i, p: (b, h, *zeros))

    inputs = {
        "query": (query, of_row(num_queries, num_heads, head_dim)),
        "start": (visible.start.astype(jnp.int32), of_row(num_queries)),
        "stop": (visible.stop.astype(jnp.int32), of_row(num_queries)),
        "keys": (keys, of_head(num_slots, head_dim)),
        "values": (values, of_head(num_slots, head_dim)),
    }
    if visible.written is not None:
        inputs["written"] = visible.written.astype(jnp.int8), of_row(num_slots)
    if visible.among is not None:
        among = visible.among.astype(jnp.int8)
        inputs["among"] = among, of_row(num_queries, num_queries)
        inputs["key_new"] = key_new, of_head(num_queries, head_dim)
        inputs["value_new"] = value_new, of_head(num_queries, head_dim)

    lanes = (num_queries, num_heads)
    if sizes.parts == 1:
        shapes = [(query.shape, query.dtype)]
        specs = [of_row(*lanes, head_dim)]
    else:  # the highest score, the sum and the output of each part
        whole = (batch, sizes.parts, *lanes)
        shapes = [(whole, jnp.float32)] * 2 + [((*whole, head_dim), jnp.float32)]
        specs = [of_row(*shape[1:]) for shape, _ in shapes]
    found = pl.pallas_call(
        functools.partial(_kernel, tuple(inputs), num_slots, num_queries, sizes),
        grid=(batch, num_kv_heads, num_blocks, sizes.parts),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=specs,
        out_shape=[jax.ShapeDtypeStruct(*shape) for shape in shapes],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=sizes.interpret,
    )(*(array for array, _ in inputs.values()))
    if sizes.parts == 1:
        return found[0]
    top, total, acc = found
    share = jnp.exp(top - top.max(1, keepdims=True))
    total = (share * total).sum(1)[..., None]
    output = (share[..., None] * acc).sum(1) / jnp.where(total > 0, total, 1.0)
    return output.astype(query.dtype)


def _kernel(names, num_slots, num_queries, sizes, *refs):
    refs, outputs = dict(zip(names, refs)), refs[len(names) :]
    head, part, width = pl.program_id(1), pl.program_id(3), sizes.slots
    place = jnp.arange(sizes.rows, dtype=jnp.int32) + pl.program_id(2) * sizes.rows
    lane, own = place // sizes.groups, head * sizes.groups + place % sizes.groups
    is_real = lane < num_queries
    lane = jnp.minimum(lane, num_queries - 1)
    rows = refs["query"][lane, own, :]
    start = jnp.maximum(refs["start"][lane], 0)
    stop = jnp.where(is_real, jnp.minimum(refs["stop"][lane], num_slots), 0)
    exact = rows.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None

    def block(ref, place, num_places):
        """A block of keys or values, and which of it there is: None for all."""
        if num_places % width == 0:
            return ref[pl.ds(place, width), :]
        here = place + jnp.arange(width, dtype=jnp.int32) < num_places
        return plgpu.load(ref.at[pl.ds(place, width), :], mask=here[:, None], other=0)

    def absorb(carry, keys, values, seen):
        """One block of keys and values, of which `seen` [rows, block] is visible."""
        top, total, acc = carry
        score = sizes.scale * jax.lax.dot(
            rows, keys.T, precision=precision, preferred_element_type=jnp.float32
        )
        if sizes.soft_cap is not None:
            # tanh, which Triton has no exact form of
            twice = jnp.exp(-2 * jnp.abs(score) / sizes.soft_cap)
            score = jnp.sign(score) * sizes.soft_cap * (1 - twice) / (1 + twice)
        score = jnp.where(seen, score, HIDDEN)
        now = jnp.maximum(top, score.max(1))
        weight = jnp.where(seen, jnp.exp(score - now[:, None]), 0.0)
        shrink = jnp.exp(top - now)
        found = jax.lax.dot(
            weight.astype(values.dtype),
            values,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        total = shrink * total + weight.sum(1)
        return now, total, shrink[:, None] * acc + found

    def cached(index, carry):
        place = index * width
        slot = place + jnp.arange(width, dtype=jnp.int32)
        seen = (start[:, None] <= slot[None]) & (slot[None] < stop[:, None])
        if "written" in refs:
            written = refs["written"].at[pl.ds(place, width)]
            written = plgpu.load(written, mask=slot < num_slots, other=0)
            seen &= (written != 0)[None]
        keys, values = (
            block(refs[name], place, num_slots) for name in ("keys", "values")
        )
        return absorb(carry, keys, values, seen)

    def beside(index, carry):
        place = index * width
        other = place + jnp.arange(width, dtype=jnp.int32)
        here = (other < num_queries)[None] & is_real[:, None]
        other = jnp.minimum(other, num_queries - 1)
        among = refs["among"].at[lane[:, None], other[None]]
        seen = plgpu.load(among, mask=here, other=0) != 0
        keys, values = (
            block(refs[name], place, num_queries) for name in ("key_new", "value_new")
        )
        return absorb(carry, keys, values, seen)

    carry = (
        jnp.full((sizes.rows,), HIDDEN, jnp.float32),
        jnp.zeros((sizes.rows,), jnp.float32),
        jnp.zeros(rows.shape, jnp.float32),
    )
    if "among" in refs:
        # The first part takes the call's own keys as well. A choice of 1 and 0 would
        # be a bool, of which Triton makes no bound.
        num_beside = -(-num_queries // width) * jnp.maximum(1 - part, 0)
        carry = jax.lax.fori_loop(0, num_beside, beside, carry)
    # Blocks of slots that any row of these sees, and this part's share of them.
    sees = start < stop
    first = jnp.where(sees, start, num_slots).min() // width
    last = pl.cdiv(jnp.where(sees, stop, 0).max(), width)
    share = pl.cdiv(jnp.maximum(last - first, 0), sizes.parts)
    low = first + part * share
    high = jnp.minimum(low + share, last)
    top, total, acc = jax.lax.fori_loop(low, high, cached, carry)

    def put(ref, value, *before):
        index, mask = (place // sizes.groups, own), is_real
        if value.ndim == 2:
            column = jnp.arange(value.shape[1], dtype=jnp.int32)[None]
            index, mask = (*(each[:, None] for each in index), column), mask[:, None]
        plgpu.store(ref.at[(*before, *index)], value, mask=mask)

    if sizes.parts == 1:
        output = acc / jnp.where(total > 0, total, 1.0)[:, None]
        put(outputs[0], output.astype(outputs[0].dtype))
    else:
        for output, value in zip(outputs, (top, total, acc), strict=True):
            put(output, value, part)
