"""An own network as a `Model`: any apply function, with a cache of its own or without.

Flax linen: `from_apply(module.apply, ...)`. Flax nnx: `graph, params = nnx.split(net)`
and `from_apply(lambda p, *lanes: nnx.merge(graph, p)(*lanes), ...)`. `pdecode.check`
tries the result against what the families ask of a model.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    Head,
    Model,
    Output,
    Params,
    Prompt,
    Query,
    SlotRun,
)
from pdecode.models.config import ATTENTIONS

_ATTENTION = {"next": "causal", "masked": "bidirectional"}


def from_apply(
    apply: Callable[..., Any],
    *,
    vocab_size: int,
    predicts: str = "next",
    mask_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
    attention: str | None = None,
    block_len: int | None = None,
    max_positions: int | None = None,
    init_cache: Callable[[int, int], Cache] | None = None,
    head: Callable[[Params], Array] | None = None,
    name: str = "own",
) -> Model:
    """A Model of `apply`; which form it has is told from its arguments.

    - apply(params, tokens [B, K], positions [B, K], mask [B, K, K]) -> [B, K, V]: lane
      i sees lane j where the mask is true. Nothing is kept but tokens: every call
      computes again all that it sees (cost: the whole buffer a call). Serves
      everything: windows, trees, any order.
    - apply(params, tokens [B, L]) -> [B, L, V]: the network masks by itself and counts
      positions from 0. Computed again likewise; serves prefixes and whole canvases, no
      trees, and a bidirectional one only for rows of one length.
    - with `init_cache(batch, num_slots)` -> leaves [B, H, S, D]: apply(params, tokens
      [B, Q], positions [B, Q], mask [B, Q, S + Q], slots [B, Q], cache) -> ([B, Q, V],
      cache). The mask is over the cache as it is after writing (`pdecode.cache.write(
      leaf, slots, values)`), then over the lanes themselves.

    `head(params)` -> [V, E] makes `apply` return hidden states [.., E] in place of
    logits, which a large vocabulary wants. Raises ValueError for what does not fit.
    """
    if predicts not in _ATTENTION:
        raise ValueError(f"{predicts=} must be one of {tuple(_ATTENTION)}")
    if predicts == "masked" and mask_id is None:
        raise ValueError("predicts='masked' needs mask_id: the id of an open position")
    attention = attention or _ATTENTION[predicts]
    if attention not in ATTENTIONS:
        raise ValueError(f"{attention=} must be one of {ATTENTIONS}")
    if (attention == "block_causal") != (block_len is not None):
        raise ValueError(
            f"{attention=} with {block_len=}: block_causal needs block_len, no other "
            "attention takes it"
        )
    is_alone = _takes_tokens_alone(apply)
    if init_cache is not None:
        call, start = _cached(apply), init_cache
    elif is_alone:
        call, start = _by_position(apply, mask_id or 0), _text
    else:
        call, start = _recomputed(apply, attention, block_len), _text
    return Model(
        init_cache=lambda prompt, num_slots: start(_batch(prompt), num_slots),
        apply=call,
        encode=call,
        head=lambda params: Head(jnp.eye(vocab_size) if head is None else head(params)),
        move=caches.move,
        vocab_size=vocab_size,
        mask_id=mask_id,
        eos_ids=tuple(eos_ids),
        predicts=predicts,
        attention=attention,
        block_len=block_len,
        max_positions=max_positions,
        name=name,
    )


def _batch(prompt: Prompt) -> int:
    return prompt.tokens.shape[0]


def _text(batch: int, num_slots: int) -> Cache:
    """Slots that hold (token, position); position -1 is an empty one."""
    return {"text": jnp.full((batch, 1, num_slots, 2), -1, jnp.int32)}


def _takes_tokens_alone(apply: Callable) -> bool:
    known = inspect.signature(apply).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in known):
        return False
    return sum(each.default is each.empty for each in known) == 2


def _recomputed(apply: Callable, attention: str, block_len: int | None) -> Callable:
    """Slots and lanes as one text, under the mask of what each of them sees."""

    def call(params, query: Query, cache: Cache):
        cache, slot_tokens, slot_places, seen = _stored(query, cache)
        batch, size = query.tokens.shape
        # What a slot saw: of what this call sees, what stands before it.
        here, there = slot_places[:, :, None], slot_places[:, None]
        if attention == "block_causal":
            here, there = here // (block_len or 1), there // (block_len or 1)
        sees = seen.any(1)[:, None] & jnp.ones_like(here == there)
        if attention != "bidirectional":
            sees &= there <= here
        none = jnp.zeros((batch, sees.shape[1], size), bool)
        among = query.visible.among
        among = jnp.zeros((batch, size, size), bool) if among is None else among
        mask = jnp.concatenate([
            jnp.concatenate([sees, none], 2), jnp.concatenate([seen, among], 2)
        ], 1)  # fmt: skip
        # A softmax over nothing is no number: who sees nobody sees itself.
        alone = ~mask.any(-1, keepdims=True) & jnp.eye(mask.shape[1], dtype=bool)[None]
        tokens = jnp.concatenate([slot_tokens, query.tokens], 1)
        places = jnp.concatenate([jnp.maximum(slot_places, 0), query.positions], 1)
        made = apply(params, tokens, places, mask | alone)
        return Output(made[:, -size:]), cache

    return call


def _by_position(apply: Callable, blank: int) -> Callable:
    """Every token at its place in one buffer, which the network reads from 0."""

    def call(params, query: Query, cache: Cache):
        cache, slot_tokens, slot_places, seen = _stored(query, cache)
        batch, length = slot_places.shape
        nth = jnp.arange(batch)[:, None]
        where = jnp.where(seen.any(1), slot_places, length)
        text = jnp.full((batch, length), blank, jnp.int32)
        text = text.at[nth, where].set(slot_tokens, mode="drop")
        text = text.at[nth, query.positions].set(query.tokens, mode="drop")
        made = apply(params, text)
        place = jnp.minimum(query.positions, length - 1)[..., None]
        return Output(jnp.take_along_axis(made, place, 1)), cache

    return call


def _cached(apply: Callable) -> Callable:
    def call(params, query: Query, cache: Cache):
        size = query.tokens.shape[1]
        if query.slots is None:
            slots = jnp.full_like(query.positions, caches.UNSTORED)
        elif isinstance(query.slots, SlotRun):
            slots = caches.each_slot(query.slots, size)
        else:
            slots = query.slots
        seen = _seen(query, _num_slots(cache))
        among = query.visible.among
        if among is None:
            among = jnp.zeros((*query.tokens.shape, size), bool)
        mask = jnp.concatenate([seen, among], 2)
        made, cache = apply(params, query.tokens, query.positions, mask, slots, cache)
        return Output(made), cache

    return call


def _stored(query: Query, cache: Cache):
    """(cache with the lanes, tokens [B, S], positions [B, S], seen [B, Q, S])."""
    own = jnp.stack([query.tokens, query.positions], -1)[:, None]
    text = caches.write(cache["text"], query.slots, own)
    tokens, places = text[:, 0, :, 0], text[:, 0, :, 1]
    seen = _seen(query, text.shape[2]) & (places >= 0)[:, None]
    return {"text": text}, jnp.maximum(tokens, 0), places, seen


def _seen(query: Query, num_slots: int) -> Array:
    """bool [B, Q, S]: the slots that each lane sees."""
    visible, slot = query.visible, jnp.arange(num_slots)[None, None]
    seen = (visible.start[..., None] <= slot) & (slot < visible.stop[..., None])
    return seen if visible.written is None else seen & visible.written[:, None]


def _num_slots(cache: Cache) -> int:
    return jax.tree.leaves(cache)[0].shape[2]
