"""A static decode of a canvas, checked several steps ahead in one call.

The static decode commits the `count` surest positions of the leftmost open block, call
by call. What it will do is guessed from the last prediction: the next canvases, each
with `count` positions more. One call evaluates all of them; a canvas is right if the
one before it, with its own prediction, leads to it. Canvas for canvas the result is
that of the static decode with the same noise. The canvases stand side by side; those of
a block-causal model are branches of one tree over what is final (`canvas_tree`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import rng
from pdecode.contracts import (
    Cache,
    Decoder,
    Generation,
    Model,
    Prompt,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.families import canvas_tree, masked_calls, rows
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import blocks, commit
from pdecode.sampling import without_mask


class ChainState(NamedTuple):
    """Carry of the loop."""

    canvas: rows.Canvas  # leaves [B, ...]
    log_probs: Array  # float32 [B, L]
    guess: Array  # int32 [B, L]  drawn at each open position of this canvas
    score: Array  # float32 [B, L]  its log-probability
    turn: Array  # int32 [B]  static steps taken
    is_new: Array  # bool [B]  the canvas was never evaluated
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    cache: Cache  # of B * D rows; of B rows in a tree
    tree: tuple | None  # (): canvases are a tree. Without leaves, so it is static


class Plan(NamedTuple):
    """What the decode is made of, checked once."""

    model: Model
    mask_id: int
    count: int  # positions a static step
    block_length: int | None
    is_absolute: bool  # blocks are counted from position 0, and the last one is whole
    num_drafts: int  # D, canvases a call
    sampling: Sampling
    max_new_tokens: int


def canvas_chain(
    model: Model,
    *,
    max_new_tokens: int,
    count: int,
    block_length: int | None,
    num_drafts: int,
    sampling: Sampling,
) -> Decoder:
    """A Decoder that takes static steps, up to `num_drafts` of them a call.

    A block-causal model is decoded in its own blocks. ValueError for a model that is
    causal or has no mask token.
    """
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"a canvas needs a model trained with a mask token, but {model.name} has "
            f"predicts={model.predicts!r}: use draft-and-verify for a causal model"
        )
    grid = blocks.of(model, block_length)
    plan = Plan(
        model, model.mask_id, count, grid.length, grid.is_absolute, num_drafts,
        without_mask(model, sampling), max_new_tokens,
    )  # fmt: skip
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(done, plan),
        output=functools.partial(output, plan),
        max_steps=max_new_tokens + _room(plan),
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The open canvas, of which nothing is evaluated, and a tree's prompt stored."""
    del keys
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model, _room(plan))
    batch, length = laid.tokens.shape
    reach = _reach(plan, laid.end)[:, None]
    is_open = ~laid.is_text & (jnp.arange(length)[None] < reach)
    if prompt.masked is not None:
        width = prompt.tokens.shape[1]
        holes = jnp.zeros_like(is_open).at[:, :width].set(prompt.masked)
        is_open |= holes & laid.is_text
    zero = jnp.zeros((batch, length))
    if is_tree := canvas_tree.fits(plan.model, prompt):
        # A tree's branches are stored behind the canvas.
        behind = plan.num_drafts * (_room(plan) + 1)
        cache = plan.model.init_cache(prompt, caches.num_slots(length + behind))
        cache = masked_calls.prefill(plan, params, prompt, cache)
        done_so_far = rows.prefill_info(plan.model, prompt)
    else:
        each = jax.tree.map(lambda leaf: jnp.repeat(leaf, plan.num_drafts, 0), prompt)
        cache = plan.model.init_cache(each, caches.num_slots(length + 1))
        done_so_far = rows.info(prompt.lengths)
    state = ChainState(
        canvas=rows.Canvas(
            jnp.where(is_open, plan.mask_id, laid.tokens),
            jnp.zeros_like(is_open), is_open, prompt.lengths, laid.end,
        ),
        log_probs=zero.astype(jnp.float32),
        guess=zero.astype(jnp.int32),
        score=zero.astype(jnp.float32),
        turn=jnp.zeros(batch, jnp.int32),
        is_new=jnp.ones(batch, bool),
        failed=jnp.zeros(batch, bool),
        cache=cache,
        tree=() if is_tree else None,
    )  # fmt: skip
    return state, done_so_far


def step(plan: Plan, params, keys, state: ChainState):
    """Guess the next canvases, evaluate them in one call, take the right ones."""
    active = ~done(plan, state)
    depth, num_distinct = guessed_depth(plan, state)
    drafts = guessed(plan, state, depth)  # leaves [B, D, ...]
    call = evaluate if state.tree is None else canvas_tree.evaluate
    guess, score, cache = call(plan, params, keys, state, drafts)
    num_right = accepted(plan, drafts, guess, score, num_distinct)
    last = num_right - 1
    taken = jax.tree.map(lambda leaf: _at(leaf, last), drafts)
    # A position is committed by the prediction of the canvas before.
    scores = jnp.concatenate([state.score[:, None], score[:, :-1]], 1)
    nth = jnp.clip(depth, 0, plan.num_drafts - 1)
    log_prob = jnp.take_along_axis(scores, nth[:, None], 1)[:, 0]
    new = state._replace(
        canvas=taken,
        log_probs=jnp.where(state.canvas.open & ~taken.open, log_prob, state.log_probs),
        guess=_at(guess, last),
        score=_at(score, last),
        turn=state.turn + jnp.where(state.is_new, 0, num_right),
        is_new=jnp.zeros_like(state.is_new),
    )
    is_number = (jnp.isfinite(new.score) | ~taken.open).all(1)
    new = ended(plan, new._replace(failed=state.failed | ~is_number))

    def keep(now, old):
        return jnp.where(jnp.expand_dims(active, tuple(range(1, now.ndim))), now, old)

    new = jax.tree.map(keep, new._replace(cache=()), state._replace(cache=()))
    if state.tree is None:
        asked = num_distinct * _reach(plan, state.canvas.end)
        computed = plan.num_drafts * depth.shape[1]
    else:
        cache = canvas_tree.kept(plan, state, drafts, last, cache)
        asked = canvas_tree.num_lanes(plan, state, drafts, num_distinct)
        computed = (plan.num_drafts + 1) * (_room(plan) + 1)  # by the block
    per_call = jnp.where(active, plan.model.num_calls, 0)
    return new._replace(cache=cache), rows.info(
        per_call,
        num_calls=per_call,
        num_committed=_counted(plan, new) - _counted(plan, state),
        num_proposed=jnp.where(active, num_distinct, 0),
        num_query_tokens=per_call * asked,
        num_query_tokens_computed=per_call * computed,
        num_dispatches=jnp.ones((), jnp.int32),
    )


def guessed_depth(plan: Plan, state: ChainState) -> tuple[Array, Array]:
    """(depth [B, L], number of canvases that differ [B]).

    Draft k, counted from 1, fills the positions of a depth below k. A canvas that was
    never evaluated has no guess: all its drafts are itself.
    """
    eligible = _eligible(plan, state.canvas) & ~state.is_new[:, None]
    depth = jax.vmap(commit.ranks)(state.score, eligible) // plan.count
    depth = jnp.where(eligible, depth, plan.num_drafts)
    deepest = jnp.where(eligible, depth, 0).max(1)
    return depth, jnp.minimum(deepest + 1, plan.num_drafts)


def guessed(plan: Plan, state: ChainState, depth: Array) -> rows.Canvas:
    """The drafts, leaves [B, D, ...]."""
    number = jnp.arange(1, plan.num_drafts + 1, dtype=jnp.int32)
    is_filled = depth[:, None] < number[None, :, None]  # [B, D, L]
    now = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[:, None], plan.num_drafts, 1), state.canvas
    )
    return now._replace(
        tokens=jnp.where(is_filled, state.guess[:, None], now.tokens),
        committed=now.committed | is_filled,
        open=now.open & ~is_filled,
    )


def evaluate(plan: Plan, params, keys, state: ChainState, drafts: rows.Canvas):
    """(guess, score, cache): what each draft predicts, [B, D, L], by one call."""
    batch, size, length = drafts.tokens.shape
    flat = batch * size
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (flat, length))
    reach = _reach(plan, drafts.end.reshape(flat, 1))
    stop = masked_calls.seen_until(plan.model, place, reach[:, 0])
    query = Query(
        tokens=drafts.tokens.reshape(flat, length),
        positions=place,
        slots=SlotRun(jnp.zeros(flat, jnp.int32)),
        visible=Visibility(jnp.zeros_like(place), stop),
    )
    output, cache = plan.model.apply(params["model"], query, state.cache)
    # The noise of the static step that would evaluate this canvas.
    ahead = jnp.arange(1, size + 1, dtype=jnp.int32)[None]
    turn = state.turn[:, None] + jnp.where(state.is_new[:, None], 0, ahead)
    places = functools.partial(
        rng.noise, jnp.repeat(keys, size, 0), rng.TARGET, place, round=turn.reshape(-1)
    )
    head = plan.model.head(params["model"])
    wants = ("token", "log_prob")
    found = vocab_head.statistics(head, output.hidden, wants, plan.sampling, places)
    score = found.log_prob.astype(jnp.float32).reshape(batch, size, length)
    return found.token.reshape(batch, size, length), score, cache


def accepted(plan: Plan, drafts: rows.Canvas, guess, score, num_distinct) -> Array:
    """int32 [B]: how many drafts are what the static decode would come by.

    The first one is; the next is if its predecessor leads to it and did not end.
    """
    each = jax.vmap(functools.partial(_filled_next, plan), 1, 1)(drafts, score)
    fills = drafts.open[:, :-1] & ~drafts.open[:, 1:]
    is_same = (each[:, :-1] == fills) & (
        ~fills | (guess[:, :-1] == drafts.tokens[:, 1:])
    )
    ends = jax.vmap(functools.partial(_is_complete, plan), 1, 1)(drafts)
    number = jnp.arange(2, plan.num_drafts + 1)[None]
    is_right = is_same.all(-1) & ~ends[:, :-1] & (number <= num_distinct[:, None])
    return 1 + jnp.cumprod(is_right, 1).sum(1, dtype=jnp.int32)


def ended(plan: Plan, state: ChainState) -> ChainState:
    """The state after one more static step where that one ends the row: no call."""
    fills = _filled_next(plan, state.canvas, state.score)
    after = state.canvas._replace(
        tokens=jnp.where(fills, state.guess, state.canvas.tokens),
        committed=state.canvas.committed | fills,
        open=state.canvas.open & ~fills,
    )
    ends = _is_complete(plan, after) & ~_is_complete(plan, state.canvas)
    ends &= ~state.failed

    def pick(now, old):
        return jnp.where(jnp.expand_dims(ends, tuple(range(1, now.ndim))), now, old)

    return state._replace(
        canvas=jax.tree.map(pick, after, state.canvas),
        log_probs=jnp.where(fills & ends[:, None], state.score, state.log_probs),
        turn=state.turn + ends,
    )


def done(plan: Plan, state: ChainState) -> Array:
    """bool [B]."""
    return state.failed | _is_complete(plan, state.canvas)


def output(plan: Plan, state: ChainState) -> Generation:
    """The result so far."""
    return rows.generation(
        state.canvas, state.log_probs, state.failed, plan.model.eos_ids
    )


def _filled_next(plan: Plan, canvas: rows.Canvas, score: Array) -> Array:
    """bool [B, L]: what the static decode fills next."""
    return jax.vmap(commit.best, (0, 0, None))(
        score, _eligible(plan, canvas), plan.count
    )


def _eligible(plan: Plan, canvas: rows.Canvas) -> Array:
    """bool [B, L]: the open positions of the leftmost block that has any."""
    if plan.block_length is None:
        return canvas.open
    place = jnp.arange(canvas.open.shape[1], dtype=jnp.int32)[None]
    begin = 0 if plan.is_absolute else canvas.prompt_end[:, None]
    block = jnp.maximum(place - begin, 0) // plan.block_length
    first = jnp.where(canvas.open, block, jnp.iinfo(jnp.int32).max).min(1)
    return canvas.open & (block == first[:, None])


def _room(plan: Plan) -> int:
    """Positions that the last block may have behind the end of a row."""
    if not plan.is_absolute or plan.block_length is None:
        return 0
    return plan.block_length - 1


def _reach(plan: Plan, end: Array) -> Array:
    """One past the last position filled, where a row ends at `end`."""
    size = _room(plan) + 1
    return -(-end // size) * size


def _is_complete(plan: Plan, canvas: rows.Canvas) -> Array:
    return rows.is_complete(canvas, plan.model.eos_ids)


def _counted(plan: Plan, state: ChainState) -> Array:
    return rows.num_counted(state.canvas, plan.model.eos_ids)


def _at(leaf: Array, index: Array) -> Array:
    """leaf [B, D, ...] at index [B]."""
    where = jnp.expand_dims(index, tuple(range(1, leaf.ndim)))
    return jnp.take_along_axis(leaf, where, 1)[:, 0]
