"""Attention on NVIDIA GPUs: a Pallas kernel in its Triton dialect.

Flash-decoding (Dao et al., 2023): the visible slots are cut into parts that run side by
side, and the parts are joined by their maximum and sum. Tests run it in interpret mode
and lower it for CUDA; on an H200 it ran under jax 0.11.2 and was as near the reference
as "xla" is. jax 0.11 deprecates Pallas on Triton and names no release that drops it;
its successor, Mosaic GPU, serves Hopper and later only and was not tried here. Where a
jax has no Triton dialect any more, CUDA gets "xla".
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

_MIN_ROWS, _MAX_ROWS = 16, 64  # query heads of a group times queries, a block
_SLOTS = 64  # a block
_PROGRAMS = 264  # enough to fill a large GPU twice
_MAX_PARTS = 16


class Sizes(NamedTuple):
    """Static facts of a call."""

    rows: int  # of a block
    slots: int  # of a block
    parts: int
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
    batch, num_queries, num_heads, _ = query.shape
    num_kv_heads, num_slots = key_cache.shape[1:3]
    num_rows = num_queries * (num_heads // num_kv_heads)
    rows = _MIN_ROWS
    while rows < min(num_rows, _MAX_ROWS):
        rows *= 2
    programs = batch * num_kv_heads * -(-num_rows // rows)
    parts = min(-(-_PROGRAMS // programs), _MAX_PARTS, -(-num_slots // slots_per_block))
    sizes = Sizes(rows, slots_per_block, parts, scale, soft_cap, interpret)
    if visible.among is None:
        key_new = value_new = None
    call = functools.partial(_call, sizes=sizes)
    call = plain.with_gradient(call, scale=scale, soft_cap=soft_cap)
    return call(query, key_cache, value_cache, visible, key_new, value_new)


@functools.partial(jax.jit, static_argnames="sizes")
def _call(query, keys, values, visible, key_new, value_new, *, sizes: Sizes) -> Array:
    batch, num_queries, num_heads, head_dim = query.shape
    num_kv_heads, num_slots = keys.shape[1:3]
    groups = num_heads // num_kv_heads
    num_rows = groups * num_queries
    missing = -num_rows % sizes.rows
    num_blocks = (num_rows + missing) // sizes.rows

    def by_row(lanes):  # [B, Q, ...] of the queries -> [B, G * Q + missing, ...]
        tiled = jnp.tile(lanes, (1, groups, *(1,) * (lanes.ndim - 2)))
        return jnp.pad(tiled, ((0, 0), (0, missing), *((0, 0),) * (lanes.ndim - 2)))

    rows = query.reshape(batch, num_queries, num_kv_heads, groups, head_dim)
    rows = rows.transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, num_kv_heads, num_rows, head_dim)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, missing), (0, 0)))
    start = by_row(jnp.clip(visible.start, 0, num_slots))
    stop = by_row(jnp.clip(visible.stop, 0, num_slots))

    # Slots that a block of rows sees, begin .. end, and how many each part takes.
    blocks = (batch, num_blocks, sizes.rows)
    sees = start < stop
    begin = jnp.where(sees, start, num_slots).reshape(blocks).min(2)
    begin = begin // sizes.slots * sizes.slots
    end = jnp.maximum(jnp.where(sees, stop, 0).reshape(blocks).max(2), begin)
    bounds = jnp.stack([begin, end], 2).astype(jnp.int32)

    def head_spec(*dims):
        return pl.BlockSpec((None, None, *dims), lambda b, h, i, p: (b, h, 0, 0))

    def row_spec(*dims):
        zeros = (0,) * len(dims)
        return pl.BlockSpec(
            (None, sizes.rows, *dims), lambda b, h, i, p: (b, i, *zeros)
        )

    inputs = {
        "bounds": (bounds, pl.BlockSpec((None, None, 2), lambda b, h, i, p: (b, i, 0))),
        "rows": (
            rows,
            pl.BlockSpec(
                (None, None, sizes.rows, head_dim), lambda b, h, i, p: (b, h, i, 0)
            ),
        ),
        "start": (start, row_spec()),
        "stop": (stop, row_spec()),
        "keys": (keys, head_spec(num_slots, head_dim)),
        "values": (values, head_spec(num_slots, head_dim)),
    }
    if visible.written is not None:
        written = visible.written.astype(jnp.int32)
        spec = pl.BlockSpec((None, num_slots), lambda b, h, i, p: (b, 0))
        inputs["written"] = (written, spec)
    if visible.among is not None:
        inputs["among"] = (
            by_row(visible.among.astype(jnp.int32)),
            row_spec(num_queries),
        )
        inputs["key_new"] = (key_new, head_spec(num_queries, head_dim))
        inputs["value_new"] = (value_new, head_spec(num_queries, head_dim))

    def out(*dims):  # a part each
        shape = (batch, num_kv_heads, sizes.parts, num_rows + missing, *dims)
        zeros = (0,) * len(dims)
        spec = pl.BlockSpec(
            (None, None, None, sizes.rows, *dims),
            lambda b, h, i, p: (b, h, p, i, *zeros),
        )
        return jax.ShapeDtypeStruct(shape, jnp.float32), spec

    outputs = [out(), out(), out(head_dim)]
    top, total, acc = pl.pallas_call(
        functools.partial(_kernel, tuple(inputs), num_slots, num_queries, sizes),
        grid=(batch, num_kv_heads, num_blocks, sizes.parts),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=sizes.interpret,
    )(*(array for array, _ in inputs.values()))

    share = jnp.exp(top - top.max(2, keepdims=True))
    total = (share * total).sum(2)[..., None]
    output = (share[..., None] * acc).sum(2) / jnp.where(total > 0, total, 1.0)
    output = output[:, :, :num_rows]
    output = output.reshape(batch, num_kv_heads, groups, num_queries, head_dim)
    output = output.transpose(0, 3, 1, 2, 4).reshape(query.shape)
    return output.astype(query.dtype)


def _kernel(names, num_slots, num_queries, sizes, *refs):
    refs, outputs = dict(zip(names, refs)), refs[len(names) :]
    part, width = pl.program_id(3), sizes.slots
    rows, start, stop = (refs[name][...] for name in ("rows", "start", "stop"))
    exact = rows.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None

    def absorb(carry, keys, values, place, num_places, sees):
        """One block of keys, from `place` on; `sees` [rows, block] within bounds."""
        top, total, acc = carry
        here = place + jnp.arange(width) < num_places
        block = pl.ds(place, width)
        keys = plgpu.load(keys.at[block, :], mask=here[:, None], other=0)
        values = plgpu.load(values.at[block, :], mask=here[:, None], other=0)
        score = sizes.scale * jax.lax.dot(
            rows, keys.T, precision=precision, preferred_element_type=jnp.float32
        )
        if sizes.soft_cap is not None:
            # tanh, which Triton has no exact form of
            twice = jnp.exp(-2 * jnp.abs(score) / sizes.soft_cap)
            score = jnp.sign(score) * sizes.soft_cap * (1 - twice) / (1 + twice)
        seen = sees(block, here)
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

        def sees(block, here):
            slot = (place + jnp.arange(width))[None]
            seen = (start[:, None] <= slot) & (slot < stop[:, None])
            if "written" in refs:
                written = plgpu.load(refs["written"].at[block], mask=here, other=0)
                seen &= (written != 0)[None]
            return seen

        keys, values = refs["keys"], refs["values"]
        return absorb(carry, keys, values, place, num_slots, sees)

    def beside(index, carry):
        place = index * width

        def sees(block, here):
            among = refs["among"].at[:, block]
            return (
                plgpu.load(among, mask=here[None] & (start >= 0)[:, None], other=0) != 0
            )

        keys, values = refs["key_new"], refs["value_new"]
        return absorb(carry, keys, values, place, num_queries, sees)

    carry = (
        jnp.full(start.shape, HIDDEN, jnp.float32),
        jnp.zeros(start.shape, jnp.float32),
        jnp.zeros(rows.shape, jnp.float32),
    )
    if "among" in refs:
        # The first part takes the call's own keys as well.
        num_beside = jnp.where(part == 0, -(-num_queries // width), 0)
        carry = jax.lax.fori_loop(0, num_beside, beside, carry)
    first = refs["bounds"][0] // width
    last = pl.cdiv(refs["bounds"][1], width)
    share = pl.cdiv(last - first, sizes.parts)
    low = first + part * share
    high = jnp.minimum(low + share, last)
    carry = jax.lax.fori_loop(low, high, cached, carry)
    for output, value in zip(outputs, carry, strict=True):
        output[...] = value
