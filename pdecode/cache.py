"""Cache helpers shared by models and families.

A cache is a pytree whose leaves are [B, Hkv, S, D]; only its model knows more.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from pdecode.contracts import Cache, SlotRun
from pdecode.sharding import context, placement

# A slot beyond every cache.
UNSTORED = jnp.iinfo(jnp.int32).max
GPU_SLOTS = 64  # what slots are a multiple of on a GPU


def num_slots(needed: int) -> int:
    """How many slots to allocate where `needed` are used: on a GPU a few more.

    Keys and values are factors of matrix products there, which are slower on rows that
    are not aligned, and of which the compiler makes copies that are. What a decode says
    does not depend on slots that nobody sees.
    """
    if jax.default_backend() != "gpu":
        return needed
    return -(-needed // GPU_SLOTS) * GPU_SLOTS


class Int8(NamedTuple):
    """Keys or values of a layer in eight bits, each vector of a head by itself.

    What a vector becomes depends on nothing else, so it is the same whichever call
    stores it, and every query, that of its own lane included, reads it so.
    """

    codes: Array  # int8 [B, H, S, D]  -127 .. 127
    scale: Array  # [B, H, S, 1]  in the model's own dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


def int8(values: Array) -> Int8:
    """Vectors [..., D] as codes of 1 / 127 of their largest entry, rounded.

    A number is off by half a code at most, beside the rounding of its own dtype.
    """
    largest = jnp.abs(values).max(-1, keepdims=True).astype(jnp.float32)
    # Rounded before it divides: codes belong to the scale that is kept.
    scale = (largest / 127).astype(values.dtype)
    safe = jnp.where(scale > 0, scale, 1).astype(jnp.float32)
    codes = jnp.round(values.astype(jnp.float32) / safe)
    return Int8(jnp.clip(codes, -127, 127).astype(jnp.int8), scale)


def floats(leaf: Array | Int8) -> Array:
    """The numbers [B, H, S, D] that a leaf stands for."""
    if isinstance(leaf, Int8):
        return leaf.codes.astype(leaf.scale.dtype) * leaf.scale
    return leaf


def store(
    leaf: Array | Int8, slots: Array | SlotRun | None, values: Array
) -> tuple[Array | Int8, Array]:
    """`write` in the leaf's own numbers, and `values` as they are read from there."""
    if isinstance(leaf, Int8):
        new = int8(values.astype(leaf.scale.dtype))
        written = [write(old, slots, each) for old, each in zip(leaf, new)]
        return Int8(*written), floats(new)
    return write(leaf, slots, values.astype(leaf.dtype)), values


def write(leaf: Array, slots: Array | SlotRun | None, values: Array) -> Array:
    """`leaf` [B, H, S, D] with `values` [B, H, Q, D] at `slots` (see `Query.slots`).

    A run of slots is written on TPU by `write_slices`: a scatter there wants the cache
    in another layout than attention does, and copies it. On several devices that needs
    the mesh in context (`jax.set_mesh`).
    """
    if slots is None:
        return leaf
    if not isinstance(slots, SlotRun):
        return _scatter(leaf, slots, values)
    each = each_slot(slots, values.shape[2])
    if context.spec(placement.CACHE, leaf.shape)[2] is not None:
        # The slots themselves are split over devices.
        return _scatter(leaf, each, values)
    return jax.lax.platform_dependent(
        leaf,
        values,
        tpu=lambda leaf, values: write_slices(leaf, slots, values),
        default=lambda leaf, values: _scatter(leaf, each, values),
    )


def each_slot(run: SlotRun, num_lanes: int) -> Array:
    """Slots int32 [B, Q] of the lanes of a run; those not stored stand nowhere."""
    each = run.start[:, None] + jnp.arange(num_lanes, dtype=jnp.int32)[None]
    return each if run.stored is None else jnp.where(run.stored, each, UNSTORED)


def is_stored(
    slots: Array | SlotRun | None, shape: tuple[int, ...], leaf: Array | Int8
) -> Array:
    """bool [B, Q] = `shape`: the lanes that `write` would store in `leaf`."""
    if slots is None:
        return jnp.zeros(shape, bool)
    each = each_slot(slots, shape[1]) if isinstance(slots, SlotRun) else slots
    return each < leaf.shape[2]


def write_slices(leaf: Array, run: SlotRun, values: Array) -> Array:
    """`write` of a run, by one slice update a row."""
    if run.stored is not None:  # of more lanes than slots the last are never stored
        run = run._replace(stored=run.stored[:, : leaf.shape[2]])
        values = values[:, :, : leaf.shape[2]]
    size = values.shape[2]
    lanes = jnp.arange(size, dtype=jnp.int32)
    zero = jnp.zeros((), jnp.int32)  # indices must be of one type, also under x64

    def on_device(leaf, run, values):
        def row(i, leaf):
            new = jax.lax.dynamic_slice_in_dim(values, i, 1)
            start = run.start[i].astype(jnp.int32)
            if run.stored is not None:
                # A slice must end inside the cache: near the end it begins earlier, and
                # its lanes stand as much later in it.
                late = jnp.maximum(start + size - leaf.shape[2], 0)
                start = start - late
                stored = jnp.roll(run.stored[i], late) & (lanes >= late)
                old = jax.lax.dynamic_slice(leaf, (i, zero, start, zero), new.shape)
                new = jnp.roll(new, late, axis=2)
                new = jnp.where(stored[None, None, :, None], new, old)
            return jax.lax.dynamic_update_slice(leaf, new, (i, zero, start, zero))

        return jax.lax.fori_loop(zero, zero + leaf.shape[0], row, leaf)

    if context.in_context() is None:
        return on_device(leaf, run, values)
    # A slice of one row would make the compiler gather those of all devices.
    split = context.spec(placement.CACHE, leaf.shape)
    return jax.shard_map(
        on_device,
        in_specs=(split, PartitionSpec(split[0]), split),
        out_specs=split,
        check_vma=False,
    )(leaf, run, values)


def _scatter(leaf: Array, slots: Array, values: Array) -> Array:
    if slots.size == 1:
        # XLA makes a single update a slice update, and on CPU fuses it into each of its
        # two readers: one of them then copies the leaf. A second, dropped lane keeps it
        # a scatter, which stays in place (one-token calls: twice as fast).
        slots = jnp.concatenate([slots, jnp.full_like(slots, leaf.shape[2])], axis=1)
        values = jnp.concatenate([values, values], axis=2)
    rows = jnp.arange(leaf.shape[0], dtype=slots.dtype)[:, None]
    # Advanced indices around a slice put [B, Q] first: values are [B, Q, H, D] there.
    # Unique: XLA for CUDA otherwise stores one number after another, as if two lanes
    # could meet (of 8 rows of 384 tokens three times as long).
    values = jnp.swapaxes(values, 1, 2)
    return leaf.at[rows, :, slots].set(values, mode="drop", unique_indices=True)


def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
    """Copies slots `source` (int32 [B, K]) to `target`, which reads as `Query.slots`.

    All sources are read before any target is written.
    """

    def one(leaf: Array) -> Array:
        index = jnp.clip(source, 0, leaf.shape[2] - 1)[:, None, :, None]
        return write(leaf, target, jnp.take_along_axis(leaf, index, axis=2))

    return jax.tree.map(one, cache)


def when(pred: Array, call: Callable, otherwise: Callable, cache: Cache):
    """`call(cache)` if the scalar `pred`, else `otherwise(cache)`: (out, cache)."""
    return one_of(jnp.where(pred, 0, 1), (call, otherwise), cache)


def one_of(which: Array, calls: Sequence[Callable], cache: Cache):
    """`calls[which](cache)`, for a scalar `which` (int32 []): (out, cache).

    On CPU and CUDA `lax.switch` copies every cache leaf on all branches, and while
    loops of zero or one turn do not; compiled for TPU it is the other way round.
    """

    def by_switch(cache):
        return jax.lax.switch(which, calls, cache)

    def by_loops(cache):
        shapes = jax.eval_shape(calls[0], cache)[0]
        carry = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), cache

        def at_most_once(run, carry, wanted):
            def body(carry):
                _, out, cache = carry
                out, cache = run(cache)
                return jnp.zeros((), bool), out, cache

            _, out, cache = jax.lax.while_loop(
                lambda carry: carry[0], body, (wanted, *carry)
            )
            return out, cache

        for nth, call in enumerate(calls):
            carry = at_most_once(call, carry, which == nth)
        return carry

    return jax.lax.platform_dependent(
        cache, cpu=by_loops, cuda=by_loops, default=by_switch
    )
