"""Any-subset speculative decoding: a masked model drafts for its own chain rule.

Positions are decided left to right, holes of the prompt included. A turn makes two
calls. The first asks the next few positions, each given what is decided: its tokens are
drafts, and the first of them is final. The second asks each position given the drafts
before it too: the law of the chain rule, by which the drafts are accepted or refused.
Keys are stored as tokens are decided, each seeing those before it, and never change.
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
    NodeRule,
    Prediction,
    Prompt,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.families import rows
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask


class SubsetState(NamedTuple):
    """Carry of the loop."""

    canvas: rows.Canvas
    log_probs: Array  # float32 [B, L]
    pending: Array  # int32 [B]  the one decided position that is not stored; -1: none
    turn: Array  # int32 [B]
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    cache: Cache


class Plan(NamedTuple):
    """What the decode is made of, checked once."""

    model: Model
    mask_id: int
    num_draft: int
    rule: NodeRule
    sampling: Sampling
    max_new_tokens: int


class Asked(NamedTuple):
    """The next open positions."""

    positions: Array  # int32 [B, K]
    valid: Array  # bool [B, K]


def any_subset(
    model: Model,
    *,
    max_new_tokens: int,
    num_draft: int,
    rule: NodeRule,
    sampling: Sampling,
) -> Decoder:
    """A Decoder that drafts `num_draft` positions and accepts them by `rule`.

    The law is that of one position a call, left to right, if the rule is lossless.
    ValueError for a model without a mask token and for fewer than two drafts.
    """
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"positions are asked by a mask token, but {model.name} has "
            f"predicts={model.predicts!r}: use draft-and-verify for a causal model"
        )
    if num_draft < 2:
        raise ValueError(f"{num_draft=}: the first is final, so draft two or more")
    plan = Plan(
        model, model.mask_id, num_draft, rule, without_mask(model, sampling),
        max_new_tokens,
    )  # fmt: skip
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(done, plan),
        output=functools.partial(output, plan),
        max_steps=max_new_tokens,
        guarantee="exact" if rule.is_lossless else "lossy",
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The prompt in the cache, all of it seen by all of it but its holes."""
    del keys
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model)
    batch, length = laid.tokens.shape
    width = prompt.tokens.shape[1]
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    is_open = ~laid.is_text & (place < laid.end[:, None])
    if prompt.masked is not None:
        holes = jnp.zeros_like(is_open).at[:, :width].set(prompt.masked)
        is_open |= holes & laid.is_text
    canvas = rows.Canvas(
        jnp.where(is_open, plan.mask_id, laid.tokens), jnp.zeros_like(is_open),
        is_open, prompt.lengths, laid.end,
    )  # fmt: skip
    state = SubsetState(
        canvas=canvas,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        pending=jnp.full(batch, -1, jnp.int32),
        turn=jnp.zeros(batch, jnp.int32),
        failed=jnp.zeros(batch, bool),
        cache=plan.model.init_cache(prompt, caches.num_slots(length + 1)),
    )
    lanes = place[:, :width]
    query = Query(
        tokens=canvas.tokens[:, :width],
        positions=lanes,
        slots=SlotRun(jnp.zeros_like(prompt.lengths)),
        visible=_seen(state, width),
    )
    _, cache = plan.model.encode(params["model"], query, state.cache)
    return state._replace(cache=cache), rows.prefill_info(plan.model, prompt)


def step(plan: Plan, params, keys, state: SubsetState):
    """Draft, verify, commit the accepted drafts and the token after them."""
    active = ~done(plan, state)
    asked = next_open(plan, state, active)
    drafted, cache = draft(plan, params, keys, state, asked)
    verified, cache = verify(plan, params, state, asked, drafted, cache)
    tokens, log_prob, count, num_taken = decide(
        plan, keys, state, asked, drafted, verified
    )
    is_number = jnp.isfinite(log_prob) | ~asked.valid
    failed = state.failed | ~is_number.all(1)
    chosen = (jnp.arange(plan.num_draft)[None] < count[:, None]) & asked.valid
    chosen &= ~failed[:, None]
    nth = jnp.arange(tokens.shape[0])[:, None]
    where = jnp.where(chosen, asked.positions, state.log_probs.shape[1])
    canvas = state.canvas._replace(
        tokens=state.canvas.tokens.at[nth, where].set(tokens, mode="drop"),
        committed=state.canvas.committed.at[nth, where].set(True, mode="drop"),
        open=state.canvas.open.at[nth, where].set(False, mode="drop"),
    )
    # A token put in place of a refused draft has no key yet.
    last = jnp.take_along_axis(asked.positions, num_taken[:, None], 1, mode="clip")
    is_put = (num_taken < count) & ~failed
    new = state._replace(
        canvas=canvas,
        log_probs=state.log_probs.at[nth, where].set(log_prob, mode="drop"),
        pending=jnp.where(is_put, last[:, 0], jnp.where(active, -1, state.pending)),
        turn=state.turn + active,
        failed=failed,
        cache=cache,
    )
    num_asked = asked.valid.sum(1, dtype=jnp.int32)
    calls = jnp.where(active, 1 + (num_asked > 1), 0) * plan.model.num_calls
    lanes = num_asked + (state.pending >= 0)
    lanes += jnp.where(num_asked > 1, 2 * num_asked - 1, 0)
    computed = 3 * plan.num_draft * plan.model.num_calls
    return new, rows.info(
        calls,
        num_calls=calls,
        num_committed=_counted(plan, new) - _counted(plan, state),
        num_proposed=num_asked,
        num_query_tokens=jnp.where(active, lanes, 0) * plan.model.num_calls,
        num_query_tokens_computed=jnp.where(active, computed, 0),
        num_dispatches=jnp.full((), 2, jnp.int32),
    )


def next_open(plan: Plan, state: SubsetState, active: Array) -> Asked:
    """The next positions, left to right."""
    length = state.log_probs.shape[1]
    place = jnp.arange(length, dtype=jnp.int32)[None]
    order = jnp.sort(jnp.where(state.canvas.open, place, length), axis=1)
    order = jnp.pad(order, ((0, 0), (0, plan.num_draft)), constant_values=length)
    first = order[:, : plan.num_draft]
    valid = (first < length) & active[:, None]
    return Asked(jnp.where(valid, first, 0), valid)


def draft(plan: Plan, params, keys, state: SubsetState, asked: Asked):
    """(Prediction of the positions given what is decided, cache).

    Lanes: [the pending token, stored | position queries].
    """
    batch, size = asked.positions.shape
    is_real = state.pending[:, None] >= 0
    real = jnp.maximum(state.pending, 0)[:, None]
    is_lane = jnp.concatenate([is_real, asked.valid], 1)
    among = jnp.eye(1 + size, dtype=bool)[None] & is_lane[:, None]
    among = among.at[:, :, 0].set(is_real)
    unstored = jnp.full((batch, size), caches.UNSTORED)
    fresh = jnp.take_along_axis(state.canvas.tokens, real, 1)
    query = Query(
        tokens=jnp.concatenate([fresh, jnp.full((batch, size), plan.mask_id)], 1),
        positions=jnp.concatenate([real, asked.positions], 1),
        slots=jnp.concatenate([jnp.where(is_real, real, caches.UNSTORED), unstored], 1),
        visible=_seen(state, 1 + size)._replace(among=among),
    )
    output, cache = plan.model.apply(params["model"], query, state.cache)
    places = functools.partial(
        rng.noise, keys, rng.DRAFT, asked.positions, round=state.turn
    )
    head = plan.model.head(params["model"])
    wants = ("token", "log_prob", "probs")
    hidden = output.hidden[:, 1:]
    return vocab_head.statistics(head, hidden, wants, plan.sampling, places), cache


def verify(plan: Plan, params, state: SubsetState, asked: Asked, drafted, cache):
    """(Prediction of positions 2, 3, .. given the drafts before each too, cache).

    Lanes: [drafts, stored | position queries but the first].
    """
    batch, size = asked.positions.shape
    number = jnp.arange(2 * size - 1)
    is_key = number < size
    nth = jnp.where(is_key, number, number - size + 1)
    # A draft sees those up to itself; a query those before it, and itself.
    among = is_key[None] & (nth[None] <= nth[:, None] - ~is_key[:, None])
    among |= jnp.eye(2 * size - 1, dtype=bool)
    valid = jnp.concatenate([asked.valid, asked.valid[:, 1:]], 1)
    masks = jnp.full((batch, size - 1), plan.mask_id)
    stored = jnp.where(asked.valid, asked.positions, caches.UNSTORED)
    query = Query(
        tokens=jnp.concatenate([drafted.token, masks], 1),
        positions=jnp.concatenate([asked.positions, asked.positions[:, 1:]], 1),
        slots=jnp.pad(stored, ((0, 0), (0, size - 1)), constant_values=caches.UNSTORED),
        visible=_seen(state._replace(pending=jnp.full_like(state.pending, -1)),
                      2 * size - 1)._replace(among=among[None] & valid[:, None]),
    )  # fmt: skip
    output, cache = plan.model.apply(params["model"], query, cache)
    head = plan.model.head(params["model"])
    hidden = output.hidden[:, size:]
    found = vocab_head.statistics(head, hidden, ("logits", "probs"), plan.sampling)
    return found, cache


def decide(plan: Plan, keys, state, asked: Asked, drafted, verified: Prediction):
    """(tokens [B, K], log_probs [B, K], how many to commit [B], of them drafts [B])."""
    judge = jax.vmap(jax.vmap(plan.rule.apply))
    later = drafted.token[:, 1:]
    accept, residual = judge(
        verified.probs, drafted.probs[:, 1:, None], later[..., None]
    )
    place = asked.positions[:, 1:]
    drawn = rng.uniform(rng.noise(keys, rng.ACCEPT, place, round=state.turn))
    is_taken = (drawn < accept[..., 0]) & asked.valid[:, 1:]
    num_taken = 1 + jnp.cumprod(is_taken, 1).sum(1, dtype=jnp.int32)
    noise = rng.noise(keys, rng.RESIDUAL, place, round=state.turn)
    gumbel = rng.gumbel(noise, residual.shape[-1])
    score = jnp.where(residual > 0, jnp.log(jnp.maximum(residual, 1e-30)), -jnp.inf)
    put = jnp.argmax(score + gumbel, -1).astype(jnp.int32)
    is_draft = jnp.arange(1, plan.num_draft)[None] < num_taken[:, None]
    tokens = jnp.where(is_draft, later, put)
    raw = jax.nn.log_softmax(verified.logits)
    log_prob = jnp.take_along_axis(raw, tokens[..., None], -1)[..., 0]
    tokens = jnp.concatenate([drafted.token[:, :1], tokens], 1)
    log_prob = jnp.concatenate([drafted.log_prob[:, :1], log_prob], 1)
    count = jnp.minimum(num_taken + 1, asked.valid.sum(1))
    return tokens, log_prob.astype(jnp.float32), count, num_taken


def done(plan: Plan, state: SubsetState) -> Array:
    """bool [B]."""
    return state.failed | rows.is_complete(state.canvas, plan.model.eos_ids)


def output(plan: Plan, state: SubsetState) -> Generation:
    """The result so far."""
    return rows.generation(
        state.canvas, state.log_probs, state.failed, plan.model.eos_ids
    )


def _seen(state: SubsetState, num_lanes: int) -> Visibility:
    """What every lane sees of the cache: what is decided and stored."""
    batch, length = state.log_probs.shape
    place = jnp.arange(length, dtype=jnp.int32)[None]
    stored = ~state.canvas.open & (place < state.canvas.end[:, None])
    stored &= place != state.pending[:, None]
    zero = jnp.zeros((batch, num_lanes), jnp.int32)
    behind = caches.num_slots(length + 1) - length
    written = jnp.pad(stored, ((0, 0), (0, behind)))
    return Visibility(zero, zero + length, written)


def _counted(plan: Plan, state: SubsetState) -> Array:
    return rows.num_counted(state.canvas, plan.model.eos_ids)
