"""Keys and values in eight bits, of which a drafter reads four, and weights in four.

The hierarchical cache of QuantSpec (2025, arXiv:2502.10424): a number is an upper
nibble on a grid of its group, and a lower nibble for what that leaves. Keys share a
grid a channel over `group` tokens, values one a token over the channels of a head. The
newest `group` to 2 `group` tokens of a row stay as they are, and a group is coded once
it is that far behind: nothing that is coded is ever taken back.

A call makes keys and values whole for the model to read. There is no kernel here that
reads nibbles, so what is saved is what is carried, not what a call moves.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Params, Prompt, Query, SlotRun

# Tokens as they are, in groups: two, and one more for the lanes of a call.
NUM_RECENT = 3


class Codes(NamedTuple):
    """Numbers on the grids of their groups."""

    nibbles: Array  # uint8  16 * upper + lower + 8
    step: Array  # of the upper nibble; broadcasts against `nibbles`
    low: Array


class Leaf(NamedTuple):
    """Keys or values of a layer."""

    codes: Codes  # [B, H, S / G, G, D]  groups that are coded
    recent: Array  # [B, H, 3 G, D]  tokens behind them


class Coded(NamedTuple):
    """A cache whose slots below `num_coded` are codes."""

    leaves: Any  # the model's cache, a `Leaf` for each array of floats
    num_coded: Array  # int32 [B]  a multiple of the group
    length: Array  # int32 [B]  of the prompt


@functools.cache
def quantized(model: Model, group: int, *, bits: int = 8) -> Model:
    """`model` that keeps its keys and values in codes and reads 8 or 4 bits of them.

    Both share one cache. What is coded where a token is predicted depends on its
    position only: `group` * max(0, position // group - 1) slots of what stands before
    the group behind it. Calls store a run of slots, at most `group` of them, each slot
    the position of its token, and code what the position of their first lane says. A
    longer `encode` is the prompt: read as it is, and then coded. Arrays of integers
    are kept as they are.
    Raises ValueError for a model that is not causal, other bits and a group below 2.
    """
    if model.predicts != "next" or model.attention != "causal":
        raise ValueError(
            f"{model.name} has predicts={model.predicts!r}, attention="
            f"{model.attention!r}: only what is never computed again can be coded"
        )
    if bits not in (4, 8) or group < 2:
        raise ValueError(f"{bits=} must be 4 or 8, and {group=} at least 2")
    return model._replace(
        init_cache=functools.partial(_init_cache, model, group),
        apply=functools.partial(_apply, model, group, bits, model.apply),
        encode=functools.partial(_encode, model, group, bits),
        move=_move,
        name=f"{bits}-bit {model.name}",
    )


def coded(values: Array, axis: int) -> Codes:
    """`values` in 8 bits; the numbers along `axis` share a grid."""
    low = values.min(axis, keepdims=True)
    step = (values.max(axis, keepdims=True) - low) / 15
    safe = jnp.where(step > 0, step, 1)
    upper = jnp.clip(jnp.round((values - low) / safe), 0, 15)
    left = values - (upper * step + low)
    lower = jnp.clip(jnp.round(left / (safe / 16)), -8, 7)
    return Codes((16 * upper + lower + 8).astype(jnp.uint8), step, low)


def read(codes: Codes, bits: int) -> Array:
    """The numbers that 8 or the upper 4 bits stand for.

    Off by step / 32 at most, and by step / 16 at a clipped corner; or by step / 2.
    """
    step, nibbles = codes.step, codes.nibbles
    values = (nibbles >> 4).astype(step.dtype) * step + codes.low
    if bits == 8:
        values = values + ((nibbles & 15).astype(step.dtype) - 8) * (step / 16)
    return values


def narrow(params: Params) -> Params:
    """`params` with every matrix in 4 bits, one grid a column, as `Codes`."""

    def one(leaf: Array):
        if not _is_number(leaf) or leaf.ndim < 2:
            return leaf
        return coded(leaf, -2)

    return jax.tree.map(one, params)


def widened(params: Params) -> Params:
    """What `narrow` parameters stand for."""
    is_codes = lambda leaf: isinstance(leaf, Codes)  # noqa: E731
    return jax.tree.map(
        lambda leaf: read(leaf, 4) if is_codes(leaf) else leaf, params, is_leaf=is_codes
    )


def num_coded(position: Array, group: int) -> Array:
    """Slots in codes where the token at `position` is the last that is read."""
    return group * jnp.maximum(position // group - 1, 0)


def _init_cache(model: Model, group: int, prompt: Prompt, num_slots: int) -> Coded:
    num_groups = -(-num_slots // group)
    whole = model.init_cache(prompt, num_groups * group)
    is_int8 = lambda leaf: isinstance(leaf, caches.Int8)  # noqa: E731
    if any(map(is_int8, jax.tree.leaves(whole, is_leaf=is_int8))):
        raise ValueError(
            f"{model.name} keeps eight bits already: load it without +int8kv"
        )

    def one(path, leaf: Array):
        if not _is_number(leaf):
            return leaf
        batch, heads, _, width = leaf.shape
        groups = jnp.zeros((batch, heads, num_groups, group, width), leaf.dtype)
        recent = jnp.zeros((batch, heads, NUM_RECENT * group, width), leaf.dtype)
        return Leaf(coded(groups, _shared(path)), recent)

    leaves = jax.tree_util.tree_map_with_path(one, whole)
    return Coded(leaves, jnp.zeros_like(prompt.lengths), prompt.lengths)


def _apply(model: Model, group: int, bits: int, call, params, query: Query, cache):
    num_lanes = query.tokens.shape[1]
    if query.slots is not None:
        if num_lanes > group:
            raise ValueError(
                f"a call of {num_lanes} lanes stores more than a group={group} of the "
                f"{model.name}'s cache: draft fewer tokens, or make groups longer"
            )
        cache = _flushed(cache, group, _first(query.slots))
    whole = _map(lambda path, leaf: _whole(leaf, cache.num_coded, bits), cache.leaves)
    output, whole = call(params, query, whole)
    return output, cache._replace(leaves=_taken(cache.leaves, whole, cache.num_coded))


def _encode(model: Model, group: int, bits: int, params, query: Query, cache: Coded):
    if query.tokens.shape[1] <= group:
        return _apply(model, group, bits, model.encode, params, query, cache)
    whole = _map(lambda path, leaf: _whole(leaf, cache.num_coded, 8), cache.leaves)
    output, whole = model.encode(params, query, whole)
    # Of the prompt the last token may not be stored.
    count = num_coded(cache.length - 1, group)

    def one(path, leaf: Leaf, values: Array) -> Leaf:
        groups = values.reshape(leaf.codes.nibbles.shape)
        return leaf._replace(codes=coded(groups, _shared(path)))

    leaves = _map(one, cache.leaves, whole)
    return output, cache._replace(leaves=_taken(leaves, whole, count), num_coded=count)


def _move(cache: Coded, source: Array, target: Array | SlotRun) -> Cache:
    """Among recent tokens; `group` is more than a call's lanes, so they hold both."""
    back = cache.num_coded
    if isinstance(target, SlotRun):
        place = target._replace(start=target.start - back)
    else:
        place = target - back[:, None]

    def one(path, leaf: Leaf) -> Leaf:
        recent = caches.move(leaf.recent, source - back[:, None], place)
        return leaf._replace(recent=recent)

    leaves = jax.tree.map(
        lambda leaf: (
            leaf if isinstance(leaf, Leaf) else caches.move(leaf, source, target)
        ),
        _map(one, cache.leaves),
        is_leaf=_is_leaf,
    )
    return cache._replace(leaves=leaves)


def _flushed(cache: Coded, group: int, first: Array) -> Coded:
    """One more group in codes, where a call that begins at slot `first` is due one."""
    due = num_coded(first, group) > cache.num_coded
    rows = jnp.arange(first.shape[0])
    place = jnp.where(due, cache.num_coded // group, caches.UNSTORED)

    def one(path, leaf: Leaf) -> Leaf:
        oldest = leaf.recent[:, :, None, :group]
        new = jax.tree.map(lambda x: x[:, :, 0], coded(oldest, _shared(path)))
        codes = jax.tree.map(
            lambda old, now: old.at[rows, :, place].set(now, mode="drop"),
            leaf.codes,
            new,
        )
        shift = jnp.where(due, group, 0)
        return Leaf(codes, _rows_of(leaf.recent, shift, leaf.recent.shape[2]))

    return cache._replace(
        leaves=_map(one, cache.leaves),
        num_coded=cache.num_coded + jnp.where(due, group, 0),
    )


def _whole(leaf: Leaf, count: Array, bits: int) -> Array:
    """All slots [B, H, S, D]: codes as they are read, and recent tokens in place."""
    values = read(leaf.codes, bits)
    values = values.reshape(*values.shape[:2], -1, values.shape[-1])
    size = leaf.recent.shape[2]
    slots = count[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    return caches.write(values.astype(leaf.recent.dtype), slots, leaf.recent)


def _taken(leaves: Any, whole: Any, count: Array) -> Any:
    """`leaves` with the recent tokens of `whole`, those from slot `count` on."""

    def one(leaf, values: Array):
        if not isinstance(leaf, Leaf):
            return values
        return leaf._replace(recent=_rows_of(values, count, leaf.recent.shape[2]))

    return jax.tree.map(one, leaves, whole, is_leaf=_is_leaf)


def _rows_of(values: Array, first: Array, size: int) -> Array:
    """Slots `first` .. `first` + size - 1 of [B, H, S, D]; the last is repeated."""
    index = first[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    index = jnp.minimum(index, values.shape[2] - 1)[:, None, :, None]
    return jnp.take_along_axis(values, index, 2)


def _map(change, leaves: Any, *others: Any) -> Any:
    """`change(path, leaf, ...)` of every `Leaf`; arrays of integers stay."""

    def one(path, leaf, *more):
        return change(path, leaf, *more) if isinstance(leaf, Leaf) else leaf

    return jax.tree_util.tree_map_with_path(one, leaves, *others, is_leaf=_is_leaf)


def _first(slots: Array | SlotRun) -> Array:
    return slots.start if isinstance(slots, SlotRun) else slots[:, 0]


def _shared(path) -> int:
    """The axis that shares a grid: tokens for keys, else the channels."""
    return -2 if getattr(path[-1], "key", None) == "k" else -1


def _is_leaf(node: Any) -> bool:
    return isinstance(node, Leaf)


def _is_number(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
