"""Cache helpers shared by models and families.

A cache is a pytree whose leaves are [B, Hkv, S, D]; only its model knows more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache


def write(leaf: Array, slots: Array, values: Array) -> Array:
    """`leaf` [B, H, S, D] with `values` [B, H, Q, D] at `slots` [B, Q]; >= S drops."""
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
