"""A causal model that judges drafts on parts of a long context, at times on all of it.

The verifier's cache of SpecPV (2025, arXiv:2512.02337): a call reads the first blocks
of the context, the last ones, some between that were retrieved, and a buffer of what
was stored since the last full pass. When the buffer cannot hold another call, the call
is a full pass: everything since the last one is computed again on the whole cache, and
blocks are chosen anew.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Output, Prompt, Query, SlotRun, Visibility

_MOST = 1e30


class Parts(NamedTuple):
    """What of a context a partial call reads, in blocks of `length` slots."""

    length: int
    num_first: int
    num_retrieved: int
    num_last: int
    room: int  # slots of the buffer, a call's lanes included

    @property
    def num_blocks(self) -> int:
        return self.num_first + self.num_retrieved + self.num_last


class Parted(NamedTuple):
    """The whole cache, and what partial calls read."""

    whole: Cache  # exact below `since`
    part: Cache  # K slots of chosen blocks, then the buffer
    is_held: Array  # bool [B, K]
    tokens: Array  # int32 [B, 1, S, 1]
    since: Array  # int32 [B]  slot of the first token in the buffer
    num_lanes: Array  # int32 [B]  of full passes, besides the call's own: asked for
    num_lanes_computed: Array  # int32 [B]
    num_passes: Array  # int32 []  full ones


@functools.cache
def partial(model: Model, parts: Parts) -> Model:
    """`model` on the cache above, for chains of draft-and-verify.

    Lossy, and the model itself as long as the chosen blocks hold the whole context. A
    block is scored by the call's own keys, in place of its queries, which a Model does
    not show: the largest product with a key between the block's least and greatest in
    each channel, summed over channels and meant over lanes, heads and layers, so that
    layers share their blocks. Raises ValueError for a model that is not causal or has
    layers that slide, and for parts without a last block.
    """
    if model.predicts != "next" or model.attention != "causal":
        raise ValueError(
            f"{model.name} has predicts={model.predicts!r}, attention="
            f"{model.attention!r}: only what stands before can be read in parts"
        )
    if model.slides:
        raise ValueError(
            f"{model.name} has layers that see a window of positions, but slots of "
            "parts are no positions: take a model whose layers all see everything"
        )
    if min(parts.length, parts.num_last, parts.room) < 1:
        raise ValueError(f"{parts} need a last block, and room for a call")
    return model._replace(
        init_cache=functools.partial(_init_cache, model, parts),
        apply=functools.partial(_apply, model, parts),
        encode=functools.partial(_encode, model, parts),
        move=_refused,
        name=f"partial {model.name}",
    )


def _init_cache(model: Model, parts: Parts, prompt: Prompt, num_slots: int) -> Parted:
    batch, length = prompt.tokens.shape[0], parts.length
    num_slots = -(-num_slots // length) * length
    held = min(parts.num_blocks * length, num_slots)
    none = jnp.zeros_like(prompt.lengths)
    return Parted(
        whole=model.init_cache(prompt, num_slots),
        part=model.init_cache(prompt, held + parts.room),
        is_held=jnp.zeros((batch, held), bool),
        tokens=jnp.zeros((batch, 1, num_slots, 1), jnp.int32),
        since=prompt.lengths - 1,
        num_lanes=none,
        num_lanes_computed=none,
        num_passes=jnp.zeros((), jnp.int32),
    )


def _encode(model: Model, parts: Parts, params, query: Query, cache: Parted):
    """The prompt but its last token."""
    output, whole = model.encode(params, query, cache.whole)
    # The text's last key that there is says what is near.
    asker = jnp.maximum(cache.since - 1, 0)[:, None]
    slots, is_held = chosen(parts, whole, cache.since, asker)
    held = _gathered(whole, slots)
    part = jax.tree.map(lambda old, new: _put(old, new, 0), cache.part, held)
    tokens = caches.write(cache.tokens, query.slots, query.tokens[:, None, :, None])
    return output, cache._replace(
        whole=whole, part=part, is_held=is_held, tokens=tokens
    )


def _apply(model: Model, parts: Parts, params, query: Query, cache: Parted):
    if not isinstance(query.slots, SlotRun) or query.visible.among is not None:
        raise ValueError(f"partial {model.name} judges chains: draft one")
    size, lane = query.tokens.shape[1], jnp.arange(query.tokens.shape[1])[None]
    if size > parts.room:
        raise ValueError(f"a call of {size} lanes needs more room than {parts.room}")
    num_held = cache.is_held.shape[1]
    start = query.slots.start
    behind = start - cache.since
    is_due = behind + size > parts.room
    tokens = caches.write(cache.tokens, query.slots, query.tokens[:, None, :, None])

    stop = num_held + behind[:, None] + lane + 1
    in_buffer = jnp.ones((start.shape[0], parts.room), bool)
    near = query._replace(
        slots=SlotRun(
            num_held + behind, jnp.broadcast_to(~is_due[:, None], query.tokens.shape)
        ),
        visible=Visibility(
            start=jnp.zeros_like(stop),
            stop=stop,
            written=jnp.concatenate([cache.is_held, in_buffer], 1),
        ),
    )
    output, part = model.apply(params, near, cache.part)

    cache = cache._replace(part=part, tokens=tokens)
    full = functools.partial(_full_pass, model, parts, params, start, is_due, size)
    hidden, cache = caches.when(
        is_due.any(),
        full,
        lambda cache: (jnp.zeros_like(output.hidden), cache),
        cache,
    )
    return Output(jnp.where(is_due[:, None, None], hidden, output.hidden)), cache


def _full_pass(model: Model, parts: Parts, params, start, is_due, size, cache: Parted):
    """Hidden states [B, size, E] from slot `start` on, and the cache of rows due."""
    width = min(parts.room + size, cache.tokens.shape[2])
    last = cache.tokens.shape[2] - 1
    slot = cache.since[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    asked = start - cache.since + size
    is_asked = is_due[:, None] & (jnp.arange(width)[None] < asked[:, None])
    query = Query(
        tokens=jnp.take_along_axis(
            cache.tokens[:, 0, :, 0], jnp.minimum(slot, last), 1
        ),
        positions=slot,
        slots=SlotRun(cache.since, is_asked & (slot <= last)),
        visible=Visibility(jnp.zeros_like(slot), slot + 1),
    )
    output, whole = model.apply(params, query, cache.whole)
    lanes = (start - cache.since)[:, None] + jnp.arange(size)[None]
    hidden = jnp.take_along_axis(output.hidden, lanes[..., None], 1)
    own = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    own = jnp.minimum(own, last)
    slots, is_held = chosen(parts, whole, start, own)
    num_held = slots.shape[1]

    def fresh(old: Array, blocks: Array, lanes: Array) -> Array:
        new = _put(_put(old, blocks, 0), lanes, num_held)
        return jnp.where(is_due[:, None, None, None], new, old)

    part = jax.tree.map(
        fresh, cache.part, _gathered(whole, slots), _gathered(whole, own)
    )
    return hidden, cache._replace(
        whole=whole,
        part=part,
        is_held=jnp.where(is_due[:, None], is_held, cache.is_held),
        since=jnp.where(is_due, start, cache.since),
        num_lanes=cache.num_lanes + jnp.where(is_due, asked - size, 0),
        num_lanes_computed=cache.num_lanes_computed + width,
        num_passes=cache.num_passes + 1,
    )


def chosen(parts: Parts, whole: Cache, count: Array, asker: Array):
    """Slots int32 [B, K] of the blocks to read of the first `count`, and which are.

    `asker` int32 [B, Q] are the slots whose keys ask.
    """
    length = parts.length
    scores = jnp.stack(
        [
            _score(leaf, count, asker, length)
            for path, leaf in jax.tree_util.tree_leaves_with_path(whole)
            if str(getattr(path[-1], "key", "")).startswith("k")
        ]
    ).mean(0)  # [B, S / length]
    block = jnp.arange(scores.shape[1])[None]
    last = ((count - 1) // length)[:, None]
    is_fixed = (block < parts.num_first) | (block > last - parts.num_last)
    scores = jnp.where(is_fixed, _MOST, scores)
    scores = jnp.where(block * length < count[:, None], scores, -_MOST)
    _, best = jax.lax.top_k(scores, min(parts.num_blocks, scores.shape[1]))
    best = jnp.sort(best, 1)
    slots = best[..., None] * length + jnp.arange(length)[None, None]
    slots = slots.reshape(best.shape[0], -1).astype(jnp.int32)
    return slots, slots < count[:, None]


def _score(keys: Array, count: Array, asker: Array, length: int) -> Array:
    """An upper bound [B, S / length] of the product of a block's keys with the asker's.

    `keys` [B, H, S, D]; the asker's are meant over lanes, the bound over heads.
    """
    keys = keys.astype(jnp.float32)
    batch, heads, num_slots, width = keys.shape
    wanted = jnp.take_along_axis(keys, asker[:, None, :, None], 2).mean(2)
    blocks = (batch, heads, num_slots // length, length, width)
    is_there = jnp.arange(num_slots)[None] < count[:, None]
    is_there = is_there[:, None, :, None]
    top = jnp.where(is_there, keys, -_MOST).reshape(blocks).max(3)
    low = jnp.where(is_there, keys, _MOST).reshape(blocks).min(3)
    wanted = wanted[:, :, None]
    bound = jnp.maximum(wanted * top, wanted * low)
    # Where a block is empty this is no number worth anything; it is not chosen.
    return jnp.clip(bound, -_MOST, _MOST).sum(-1).mean(1)


def _gathered(cache: Cache, slots: Array) -> Cache:
    index = slots[:, None, :, None]
    return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, index, 2), cache)


def _put(leaf: Array, values: Array, first: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(leaf, values, first, 2)


def _refused(cache: Any, source: Array, target: Any):
    raise ValueError("a cache of parts judges chains, which need no move: draft one")
