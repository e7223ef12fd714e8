"""A masked model drafts to the right of a prefix, an autoregressive one judges.

Each round the masked model predicts up to `lookahead` masked positions behind the
prefix in one call, the judge reads them in one more, and a rule says how many stay.
The judge's calls are counted as a drafter's, so that both models' calls are told.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import (
    Cache,
    Decoder,
    Model,
    Prefix,
    Prompt,
    Query,
    SlotRun,
    Visibility,
)
from pdecode.families import rows, speculative
from pdecode.kernels.head import dense
from pdecode.sampling import ban


class Drafted(NamedTuple):
    """What a verdict sees: M positions of every row, banned ids at -1e30."""

    tokens: Array  # int32 [B, M]  drawn from the masked model's marginals
    logits: Array  # [B, M, V]  of the masked model
    judged: Array  # [B, M, V]  of the judge, given the prefix and the draft before
    keys: Array  # [B, M]  of the noise that drew `tokens`


# (stays bool [B, M], what stands at the first that does not int32 [B, M], or None:
# then nothing does, and the first position stays whatever the rule says)
Verdict = Callable[[Drafted], tuple[Array, Array | None]]


class JudgedState(NamedTuple):
    """Carry of the loop."""

    prefix: Prefix
    log_probs: Array  # float32 [B, L]  of the masked model
    saw_eos: Array  # bool [B]
    failed: Array  # bool [B]
    cache: Cache
    judge_cache: Cache  # holds all but the last token of the prefix
    turn: Array  # int32 [B]


class Plan(NamedTuple):
    """What a judged decode is made of, checked once."""

    model: Model
    mask_id: int
    judge: Model
    draw: Callable  # (logits, keys) -> int32 tokens
    verdict: Verdict
    lookahead: int
    max_new_tokens: int
    banned: tuple[int, ...]


def judged(
    model: Model,
    judge: Model,
    draw: Callable[[Array, Array], Array],
    verdict: Verdict,
    *,
    lookahead: int,
    max_new_tokens: int,
    banned: tuple[int, ...] = (),
) -> Decoder:
    """A Decoder that takes the leading positions that `verdict` lets stay.

    `draw(logits, keys)` draws the tokens of the draft. Params have the roles "model"
    and "judge". ValueError for models that do not fit each other, and for a
    block-causal one.
    """
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"the drafting model must be trained with a mask token, but {model.name} "
            f"has predicts={model.predicts!r}: swap the models"
        )
    if judge.predicts != "next":
        raise ValueError(
            f"the judge must be autoregressive, but {judge.name} has "
            f"predicts={judge.predicts!r}"
        )
    if model.attention == "block_causal" or model.vocab_size != judge.vocab_size:
        raise ValueError(
            f"{model.name} ({model.attention}, {model.vocab_size} ids) and "
            f"{judge.name} ({judge.vocab_size} ids) need one vocabulary, and the first "
            "must see both ways"
        )
    banned = tuple(dict.fromkeys((model.mask_id, *banned)))
    lookahead = min(lookahead, max_new_tokens)
    plan = Plan(
        model, model.mask_id, judge, draw, verdict, lookahead, max_new_tokens, banned
    )
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(speculative.done, plan),
        output=functools.partial(speculative.output, plan),
        max_steps=max_new_tokens,
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The judge reads the prompt; the masked model reads it in every round."""
    del keys
    rows.no_holes(prompt, "a judged decode")
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model)
    batch, length = laid.tokens.shape
    zero = jnp.zeros(batch, jnp.int32)
    num_slots = caches.num_slots(length + plan.lookahead)
    judge_cache = plan.judge.init_cache(prompt, num_slots)
    _, judge_cache = prompts.prefill(
        plan.judge, params["judge"], prompt, judge_cache, drop=1
    )
    state = JudgedState(
        prefix=Prefix(laid.tokens, prompt.lengths, laid.end, prompt.lengths),
        log_probs=jnp.zeros((batch, length), jnp.float32),
        saw_eos=zero == 1,
        failed=zero == 1,
        cache=plan.model.init_cache(prompt, caches.num_slots(length + 1)),
        judge_cache=judge_cache,
        turn=zero,
    )
    called = jnp.where(prompt.lengths > 1, plan.judge.num_calls, 0)
    width = prompt.tokens.shape[1] - 1
    return state, rows.info(
        zero,
        num_draft_calls=called,
        num_draft_tokens=called * (prompt.lengths - 1),
        num_draft_tokens_computed=jnp.full_like(called, width * plan.judge.num_calls),
    )


def step(plan: Plan, params, keys, state: JudgedState):
    """Draft, judge, take what stays."""
    active = ~speculative.done(plan, state)
    prefix = state.prefix
    places = prefix.length[:, None] + jnp.arange(plan.lookahead, dtype=jnp.int32)[None]
    logits, cache = look(plan, params, state, places)
    drawn = rng.noise(keys, rng.TARGET, places, round=state.turn)
    tokens = plan.draw(logits, drawn)
    said, judge_cache = listen(plan, params, state, tokens)
    emitted = take(plan, prefix, Drafted(tokens, logits, said, drawn), active)
    new_tokens, log_probs = speculative.append(prefix, state.log_probs, emitted)
    new = JudgedState(
        prefix=prefix._replace(tokens=new_tokens, length=prefix.length + emitted.count),
        log_probs=log_probs,
        saw_eos=state.saw_eos | emitted.saw_eos,
        failed=state.failed | emitted.failed,
        cache=cache,
        judge_cache=judge_cache,
        turn=state.turn + active,
    )
    calls = jnp.where(active, plan.model.num_calls, 0)
    judge_calls = jnp.where(active, plan.judge.num_calls, 0)
    asked = jnp.minimum(plan.lookahead, prefix.end - prefix.length)
    return new, rows.info(
        calls,
        num_calls=calls,
        num_committed=emitted.count,
        num_proposed=jnp.where(active, asked, 0),
        num_query_tokens=calls * (prefix.length + asked),
        num_query_tokens_computed=calls * prefix.tokens.shape[1],
        num_draft_calls=judge_calls,
        num_draft_tokens=judge_calls * asked,
        num_draft_tokens_computed=judge_calls * plan.lookahead,
        num_dispatches=jnp.ones((), jnp.int32),
    )


def look(plan: Plan, params, state: JudgedState, places: Array):
    """Logits [B, M, V] of the masked model behind the prefix, and its cache."""
    prefix = state.prefix
    batch, length = prefix.tokens.shape
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    stop = jnp.minimum(prefix.length + plan.lookahead, prefix.end)
    query = Query(
        tokens=jnp.where(place < prefix.length[:, None], prefix.tokens, plan.mask_id),
        positions=place,
        slots=SlotRun(jnp.zeros_like(stop)),
        visible=Visibility(
            jnp.zeros_like(place), jnp.broadcast_to(stop[:, None], place.shape)
        ),
    )
    output, cache = plan.model.apply(params["model"], query, state.cache)
    at = jnp.minimum(places, length - 1)[..., None]
    hidden = jnp.take_along_axis(output.hidden, at, 1)
    return ban(
        dense.logits(plan.model.head(params["model"]), hidden), plan.banned
    ), cache


def listen(plan: Plan, params, state: JudgedState, tokens: Array):
    """Logits [B, M, V] of the judge for the drafted positions, and its cache."""
    prefix = state.prefix
    root = prefix.length - 1
    last = jnp.take_along_axis(prefix.tokens, root[:, None], 1)
    positions = root[:, None] + jnp.arange(plan.lookahead, dtype=jnp.int32)[None]
    query = Query(
        tokens=jnp.concatenate([last, tokens[:, :-1]], 1),
        positions=positions,
        slots=SlotRun(root),
        visible=Visibility(jnp.zeros_like(positions), positions + 1),
    )
    output, cache = plan.judge.apply(params["judge"], query, state.judge_cache)
    head = plan.judge.head(params["judge"])
    return ban(dense.logits(head, output.hidden), plan.banned), cache


def take(plan: Plan, prefix: Prefix, drafted: Drafted, active) -> speculative.Emitted:
    """The leading tokens that stay, cut at the row's end and behind the first EOS."""
    stays, instead = plan.verdict(drafted)
    nth = jnp.arange(plan.lookahead, dtype=jnp.int32)[None]
    if instead is None:
        stays |= nth == 0
    number = jnp.cumprod(stays.astype(jnp.int32), 1).sum(1)
    tokens = drafted.tokens
    if instead is not None:
        tokens = jnp.where(nth == number[:, None], instead, tokens)
        number = jnp.minimum(number + 1, plan.lookahead)
    raw = jax.nn.log_softmax(drafted.logits)
    log_probs = jnp.take_along_axis(raw, tokens[..., None], 2)[..., 0]
    room = jnp.minimum(number, prefix.end - prefix.length)
    is_number = jnp.isfinite(log_probs)
    eos_ids = plan.model.eos_ids
    return speculative.cut(eos_ids, tokens, log_probs, is_number, room, active)
