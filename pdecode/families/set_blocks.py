"""Set block decoding: a causal model that fills the masks of the next block in sets.

The text is causal and cached, as in autoregressive decoding. The next K positions are a
block: a turn asks all of them that are open in one call, and a commit rule says which
are filled. Every answer is read where a causal model gives it, one position to the
left, so the first open one is predicted by the last token of the text.

    text | block            text a b c, block of 4 from d on, e filled
    c    | _  e  _  _       the lanes of a call: the first four predict d, (e), f, g
    <----- text sees text; from the first mask on, the block's lanes see all of it

What stands in the block before its first mask is text already: it sees no mask. When a
block is full, the call that begins the next one stores it, each token seeing those
before it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import (
    Cache,
    Decoder,
    Generation,
    Model,
    Prediction,
    Prompt,
    Query,
    Row,
    Rule,
    Sampling,
    Visibility,
)
from pdecode.families import rows
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask


class SetState(NamedTuple):
    """Carry of the loop."""

    canvas: rows.Canvas
    log_probs: Array  # float32 [B, L]
    first: Array  # int32 [B]  where the block begins
    stored: Array  # int32 [B]  slots before it hold final keys
    block: Array  # int32 [B]  blocks finished
    step: Array  # int32 [B]  turns taken in the block
    turn: Array  # int32 [B]
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    memory: Any  # of the commit rule, leaves [B, ...]
    cache: Cache


class Plan(NamedTuple):
    """What the decode is made of, checked once."""

    model: Model
    mask_id: int
    rule: Rule
    block_length: int
    sampling: Sampling
    max_new_tokens: int


def set_blocks(
    model: Model,
    commit: Rule,
    *,
    max_new_tokens: int,
    block_length: int,
    sampling: Sampling,
) -> Decoder:
    """A Decoder that fills blocks of `block_length` by `commit`, one position at least.

    Draws are named by their position alone, as in autoregressive decoding: positions
    filled one a turn, left to right, are that decode, token by token, and so are blocks
    of one. ValueError for a model that is not causal or has no mask token, and for
    blocks of nothing.
    """
    if model.predicts != "next" or model.attention != "causal":
        raise ValueError(
            f"the text before a block is causal, but {model.name} has attention="
            f"{model.attention!r} and predicts={model.predicts!r}: use eb_sampler"
        )
    if model.mask_id is None:
        raise ValueError(
            f"open positions are masks, but {model.name} has none: train one with "
            "objective='set_block'"
        )
    if model.slides:
        raise ValueError(
            f"{model.name} has layers that see a window, and the lanes of a block "
            "stand in no slots: take a model without them"
        )
    if block_length < 1:
        raise ValueError(f"{block_length=} must be at least 1")
    plan = Plan(
        model, model.mask_id, commit, block_length, without_mask(model, sampling),
        max_new_tokens,
    )  # fmt: skip
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(done, plan),
        output=functools.partial(output, plan),
        max_steps=max_new_tokens,
        guarantee="lossless" if block_length == 1 else "lossy",
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The prompt but its last token in the cache, and an open block behind it."""
    del keys
    rows.no_holes(prompt, "set block decoding")
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model)
    batch, length = laid.tokens.shape
    place = jnp.arange(length, dtype=jnp.int32)[None]
    is_open = ~laid.is_text & (place < laid.end[:, None])
    canvas = rows.Canvas(
        jnp.where(is_open, plan.mask_id, laid.tokens), jnp.zeros_like(is_open),
        is_open, prompt.lengths, laid.end,
    )  # fmt: skip
    cache = plan.model.init_cache(prompt, caches.num_slots(length + 1))
    _, cache = prompts.prefill(plan.model, params["model"], prompt, cache, drop=1)
    zero = jnp.zeros(batch, jnp.int32)
    memory = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (batch, *jnp.shape(leaf))),
        plan.rule.init(length),
    )
    state = SetState(
        canvas=canvas,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        first=prompt.lengths,
        stored=prompt.lengths - 1,
        block=zero,
        step=zero,
        turn=zero,
        failed=zero == 1,
        memory=memory,
        cache=cache,
    )
    return state, rows.prefill_info(plan.model, prompt, drop=1)


def step(plan: Plan, params, keys, state: SetState):
    """Ask what is open of the block, fill what the rule chooses, go on when full."""
    active = ~done(plan, state)
    hidden, cache, asked, computed = evaluate(plan, params, state, active)
    place = state.first[:, None] + jnp.arange(plan.block_length, dtype=jnp.int32)[None]
    length = state.log_probs.shape[1]
    safe = jnp.minimum(place, length - 1)
    is_open = jnp.take_along_axis(state.canvas.open, safe, 1) & active[:, None]
    is_open &= place < length
    wants = tuple(dict.fromkeys(("token", "log_prob", *plan.rule.wants)))
    places = functools.partial(rng.noise, keys, rng.TARGET, place)
    head = plan.model.head(params["model"])
    prediction = vocab_head.statistics(head, hidden, wants, plan.sampling, places)

    chosen, memory = choose(plan, keys, state, prediction, safe, is_open)
    is_number = jnp.isfinite(prediction.log_prob) | ~is_open
    failed = state.failed | ~is_number.all(1)
    chosen &= ~failed[:, None]
    nth = jnp.arange(place.shape[0])[:, None]
    where = jnp.where(chosen, place, length)
    canvas = state.canvas._replace(
        tokens=state.canvas.tokens.at[nth, where].set(prediction.token, mode="drop"),
        committed=state.canvas.committed.at[nth, where].set(True, mode="drop"),
        open=state.canvas.open.at[nth, where].set(False, mode="drop"),
    )
    log_prob = prediction.log_prob.astype(jnp.float32)
    is_full = active & ~(is_open & ~chosen).any(1)
    new = state._replace(
        canvas=canvas,
        log_probs=state.log_probs.at[nth, where].set(log_prob, mode="drop"),
        first=state.first + plan.block_length * is_full,
        stored=jnp.where(active, state.first, state.stored),
        block=state.block + is_full,
        step=jnp.where(is_full, 0, state.step + active),
        turn=state.turn + active,
        failed=failed,
        memory=memory,
        cache=cache,
    )
    eos_ids, calls = plan.model.eos_ids, active * plan.model.num_calls
    before, after = (rows.num_counted(each, eos_ids) for each in (state.canvas, canvas))
    return new, rows.info(
        calls,
        num_calls=calls,
        num_committed=after - before,
        num_proposed=is_open.sum(1, dtype=jnp.int32),
        num_query_tokens=asked * calls,
        num_query_tokens_computed=computed * plan.model.num_calls,
        num_dispatches=jnp.full((), 1, jnp.int32),
    )


def evaluate(plan: Plan, params, state: SetState, active: Array):
    """(hidden states [B, K, E] that predict the block, cache, lanes asked, computed).

    A narrow call has the last token of the text and the block. A wide one, made where a
    row has tokens to store, has the whole block before it too.
    """
    size = plan.block_length
    start = jnp.minimum(state.stored, state.first - 1)  # text from here on is asked

    def call(num_text: int, cache: Cache):
        query, is_lane = query_of(plan, state, active, start, num_text)
        output, cache = plan.model.apply(params["model"], query, cache)
        count = is_lane.sum(1, dtype=jnp.int32)
        return (output.hidden[:, num_text - 1 : num_text - 1 + size], count), cache

    narrow = functools.partial(call, 1)
    if size == 1:
        (hidden, asked), cache = narrow(state.cache)
        return hidden, cache, asked, jnp.ones_like(asked)
    has_more = (active & (start < state.first - 1)).any()
    wide = functools.partial(call, size)
    (hidden, asked), cache = caches.when(has_more, wide, narrow, state.cache)
    computed = jnp.where(has_more, 2 * size, 1 + size)
    return hidden, cache, asked, jnp.broadcast_to(computed, asked.shape)


def query_of(
    plan: Plan, state: SetState, active: Array, start: Array, num_text: int
) -> tuple[Query, Array]:
    """The call whose lanes are [`num_text` of text | block], and which of them count.

    Lanes see the cache before `start`, and each other through `among`. The last lane of
    a block is seen, and predicts nothing: of a block of one it is left out.
    """
    length, size = state.log_probs.shape[1], plan.block_length
    offset = jnp.arange(-num_text, size if size > 1 else 0, dtype=jnp.int32)[None]
    raw = state.first[:, None] + offset
    place = jnp.clip(raw, 0, length - 1)
    is_lane = (raw >= start[:, None]) & (raw < state.canvas.end[:, None])
    is_lane &= active[:, None]
    is_text = is_lane & (offset < 0)
    is_stored = is_text & (raw >= state.stored[:, None])
    among = is_lane[:, None] & seen(raw, first_open(state))
    zero = jnp.zeros_like(place)
    query = Query(
        tokens=jnp.take_along_axis(state.canvas.tokens, place, 1),
        positions=place,
        slots=jnp.where(is_stored, place, caches.UNSTORED),
        visible=Visibility(zero, zero + start[:, None], among=among),
    )
    return query, is_lane


def seen(place: Array, open_from: Array) -> Array:
    """bool [B, Q, Q]: which lanes at `place` [B, Q] see each other.

    Before the first mask, at `open_from` [B], a lane is text and sees what comes before
    it; from there on it sees all.
    """
    is_text = (place < open_from[:, None])[..., None]
    return ~is_text | (place[:, None] <= place[..., None])


def first_open(state: SetState) -> Array:
    """int32 [B]: the first open position, L where none is."""
    place = jnp.arange(state.log_probs.shape[1], dtype=jnp.int32)[None]
    return jnp.where(state.canvas.open, place, place.shape[1]).min(1)


def choose(plan: Plan, keys, state: SetState, prediction: Prediction, place, is_open):
    """(what is filled, bool [B, K], and the rule's memory)."""
    canvas, size = state.canvas, plan.block_length
    block = state.block[:, None]
    row = Row(
        tokens=canvas.tokens,
        masked=canvas.open,
        generated=canvas.open | canvas.committed,
        prompt_end=canvas.prompt_end,
        start=canvas.prompt_end,
        end=canvas.end,
        block=state.block,
        num_initial=jnp.minimum(size, canvas.end - state.first),
        step=state.step,
        turn=state.turn,
        positions=place,
        block_of=jnp.broadcast_to(block, place.shape),
        open=is_open,
    )
    drawn = rng.row_noise(keys, rng.COMMIT, state.turn)
    decide = jax.vmap(functools.partial(plan.rule.apply, None))
    chosen, memory = decide(drawn, row, prediction, state.memory)
    chosen &= is_open
    leftmost = is_open & (jnp.cumsum(is_open, 1) == 1)
    return chosen | (leftmost & ~chosen.any(1, keepdims=True)), memory


def done(plan: Plan, state: SetState) -> Array:
    """bool [B]."""
    return state.failed | rows.is_complete(state.canvas, plan.model.eos_ids)


def output(plan: Plan, state: SetState) -> Generation:
    """The result so far."""
    return rows.generation(
        state.canvas, state.log_probs, state.failed, plan.model.eos_ids
    )
