"""Cache helpers shared by models and families.

A cache is a pytree whose leaves are [B, Hkv, S, D]; only its model knows more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from pdecode.contracts import Cache
from pdecode.kernels import mesh
from pdecode.models import placement


def write(leaf: Array, slots: Array, values: Array) -> Array:
    """`leaf` [B, H, S, D] with `values` [B, H, Q, D] at `slots` (see `Query.slots`).

    A run of slots is written on TPU by `write_slices`: a scatter there wants the cache
    in another layout than attention does, and copies it. On several devices that needs
    the mesh in context (`jax.set_mesh`).
    """
    if slots.ndim == 2:
        return _scatter(leaf, slots, values)
    each = each_slot(slots, values.shape[2])
    if mesh.spec(placement.CACHE, leaf.shape)[2] is not None:
        # The slots themselves are split over devices.
        return _scatter(leaf, each, values)
    return jax.lax.platform_dependent(
        leaf,
        values,
        tpu=lambda leaf, values: write_slices(leaf, slots, values),
        default=lambda leaf, values: _scatter(leaf, each, values),
    )


def each_slot(slots: Array, num_lanes: int) -> Array:
    """`Query.slots` lane by lane, int32 [B, Q]."""
    if slots.ndim == 2:
        return slots
    return slots[:, None] + jnp.arange(num_lanes, dtype=slots.dtype)[None]


def write_slices(leaf: Array, slots: Array, values: Array) -> Array:
    """`write` of a run from `slots` [B], by one slice update a row."""

    def on_device(leaf, slots, values):
        def row(i, leaf):
            one = jax.lax.dynamic_slice_in_dim(values, i, 1)
            return jax.lax.dynamic_update_slice(leaf, one, (i, 0, slots[i], 0))

        return jax.lax.fori_loop(0, leaf.shape[0], row, leaf)

    if mesh.in_context() is None:
        return on_device(leaf, slots, values)
    # A slice of one row would make the compiler gather those of all devices.
    split = mesh.spec(placement.CACHE, leaf.shape)
    return jax.shard_map(
        on_device,
        in_specs=(split, PartitionSpec(split[0]), split),
        out_specs=split,
        check_vma=False,
    )(leaf, slots, values)


def _scatter(leaf: Array, slots: Array, values: Array) -> Array:
    if slots.size == 1:
        # XLA makes a single update a slice update, and on CPU fuses it into each of its
        # two readers: one of them then copies the leaf. A second, dropped lane keeps it
        # a scatter, which stays in place (one-token calls: twice as fast).
        slots = jnp.concatenate([slots, jnp.full_like(slots, leaf.shape[2])], axis=1)
        values = jnp.concatenate([values, values], axis=2)
    rows = jnp.arange(leaf.shape[0], dtype=slots.dtype)[:, None]
    # Advanced indices around a slice put [B, Q] first: values are [B, Q, H, D] there.
    return leaf.at[rows, :, slots].set(jnp.swapaxes(values, 1, 2), mode="drop")


def move(cache: Cache, source: Array, target: Array) -> Cache:
    """Copies slots `source` to `target` (int32 [B, K]); target >= S is dropped.

    All sources are read before any target is written.
    """

    def one(leaf: Array) -> Array:
        index = jnp.clip(source, 0, leaf.shape[2] - 1)[:, None, :, None]
        return write(leaf, target, jnp.take_along_axis(leaf, index, axis=2))

    return jax.tree.map(one, cache)


def when(pred: Array, call: Callable, otherwise: Callable, cache: Cache):
    """`call(cache)` if the scalar `pred`, else `otherwise(cache)`: (out, cache).

    On CPU `lax.cond` copies every cache leaf on both branches, and a while loop of zero
    or one turn does not; compiled for TPU or GPU it is the other way round.
    """

    def by_cond(cache):
        return jax.lax.cond(pred, call, otherwise, cache)

    def by_loops(cache):
        shapes = jax.eval_shape(call, cache)[0]
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def at_most_once(run, carry, wanted):
            def body(carry):
                _, out, cache = carry
                out, cache = run(cache)
                return jnp.zeros((), bool), out, cache

            _, out, cache = jax.lax.while_loop(
                lambda carry: carry[0], body, (wanted, *carry)
            )
            return out, cache

        carry = at_most_once(call, (blank, cache), pred)
        return at_most_once(otherwise, carry, ~pred)

    return jax.lax.platform_dependent(cache, cpu=by_loops, default=by_cond)
