"""The masked family: a canvas of open positions, filled in any order.

Every row has its own canvas, block and step. A step evaluates a window of the canvas in
one call, lets the commit rule fill some of its open positions, and may reopen or
overwrite others. The phases are the functions below; `masked_diffusion` binds them to
what a method is made of.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import rng
from pdecode.contracts import (
    STOPPED_BY,
    Blocks,
    Cache,
    CanvasShape,
    Decoder,
    Generation,
    Lens,
    Model,
    Prompt,
    Read,
    Refresh,
    Rule,
    Sampling,
    Window,
)
from pdecode.families import masked_calls as calls
from pdecode.families import masked_decisions as decisions
from pdecode.families import masked_progress as progress_of
from pdecode.families import rows
from pdecode.kernels.head import api as vocab_head
from pdecode.kernels.head import dense
from pdecode.rules import blocks as grids
from pdecode.rules import windows
from pdecode.sampling import without_mask

__all__ = ["masked_diffusion", "undrawn"]


class CanvasState(NamedTuple):
    """Carry of the loop."""

    tokens: Array  # int32 [B, L]
    masked: Array  # bool [B, L]  still open
    generated: Array  # bool [B, L]  open when decoding began
    log_probs: Array  # float32 [B, L]
    prompt_end: Array  # int32 [B]
    start: Array  # int32 [B]  first position to fill
    end: Array  # int32 [B]  one past the last position asked for
    reach: Array  # int32 [B]  one past the last one filled: `end`, or its block's
    block: Array  # int32 [B]  that of the leftmost open position
    num_initial: Array  # int32 [B]  open positions of the block when it began
    step: Array  # int32 [B]  steps taken in the block
    turn: Array  # int32 [B]  steps taken in all
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    is_cut: Array  # bool [B]  its end was moved forward
    fresh: Array  # bool [B, L]  filled or changed by the last step
    settling: Array  # int32 [B]  steps begun in a block that is full
    cache: Cache
    memory: tuple  # of the commit, remask and edit rules, then of the lenses
    holes: tuple | None  # (): the prompt has holes. Without leaves, so it is static
    observed: Array | None  # float32 [B, L, C]  by the last call, see `Model.observed`


class Plan(NamedTuple):
    """What a masked decode is made of, checked once."""

    model: Model
    mask_id: int
    rules: tuple[Rule | None, Rule | None, Rule | None]  # commit, remask, edit
    lenses: tuple[Lens, ...]
    blocks: Blocks
    window: Callable[[Blocks, CanvasShape], Window]
    refresh: Refresh | None
    stop: Read | None
    fill: Read | None
    truncate: Read | None
    sampling: Sampling
    wants: tuple[str, ...]
    max_new_tokens: int
    is_forced: bool
    settle: int  # steps that a full block may be edited for
    last_turn: int | None  # fills whatever is open
    runs_on: bool  # only the last turn ends a row: a full canvas may be reopened


def masked_diffusion(
    model: Model,
    commit: Rule,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    blocks: Blocks | None = None,
    remask: Rule | None = None,
    edit: Rule | None = None,
    lenses: Sequence[Lens] = (),
    window: Callable[[Blocks, CanvasShape], Window] = windows.canvas,
    refresh: Refresh | None = None,
    stop: Read | None = None,
    fill: Read | None = None,
    truncate: Read | None = None,
    settle: int = 0,
    progress: str = "force",
    max_steps: int | None = None,
) -> Decoder:
    """A Decoder that fills the canvas by `commit`, block by block.

    `blocks` (None: one, or the model's own) are filled in order. `window` chooses what
    a call evaluates, `refresh` when it evaluates more. `lenses` change the law, left to
    right.
    After the commit, `remask` may reopen and `edit` overwrite lanes that were filled
    before this step; a full block stays for up to `settle` steps while edits change it.
    `stop(row, prediction)` fills all open lanes at once, with
    `fill(row, prediction)` int32 [W] in place of the drawn tokens;
    `truncate(row, prediction)` int32 [], after the commit, moves the row's end forward:
    what was open behind it is dropped and seen no more. `progress="force"` commits
    at least one position a step; `"schedule"` leaves the pace to the rule, and the step
    `max_steps - 1` fills whatever is open; with a remask rule it then also runs to the
    end. Raises ValueError for a model without a mask token and for parts that do not
    fit each other.
    """
    plan = _checked(
        model, (commit, remask, edit), tuple(lenses), blocks, window, refresh, stop,
        fill, truncate, sampling, max_new_tokens, settle, progress, max_steps,
    )  # fmt: skip
    # A block's last position may lie behind the row's end.
    grid = plan.blocks
    overhang = (grid.whole or grid.length) - 1 if grid.is_absolute else 0  # type: ignore
    limit = max_new_tokens + overhang if max_steps is None else max_steps
    limit += settle * (1 if grid.length is None else limit // grid.length + 2)
    # A block-causal model's finished blocks never change.
    is_whole = plan.window is windows.canvas or (
        model.attention == "block_causal"
        and refresh is not None
        and refresh.has_prefill
    )
    is_exact = commit.is_exact and plan.is_forced and is_whole
    others = (remask, edit, stop, fill, truncate, plan.lenses or None)
    is_exact &= all(part is None for part in others)
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(progress_of.done, plan),
        output=functools.partial(output, plan),
        max_steps=limit,
        guarantee="exact" if is_exact else "lossy",
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The canvas before the first step, and the prompt in the cache if asked for."""
    del keys
    decisions.check_roles(plan, params)
    grid = plan.blocks
    room = (grid.whole or grid.length or 1) - 1 if grid.is_absolute else 0
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model, room)
    batch, length = laid.tokens.shape
    place = jnp.arange(length)[None]
    reach = laid.end if room == 0 else -(-laid.end // (room + 1)) * (room + 1)
    masked = ~laid.is_text & (place < reach[:, None])
    if prompt.masked is not None:
        width = prompt.tokens.shape[1]
        holes = jnp.zeros_like(masked).at[:, :width].set(prompt.masked)
        masked |= holes & laid.is_text
    zero = jnp.zeros(batch, jnp.int32)
    # One slot more: a canvas-sized call must not alias the whole cache.
    cache = plan.model.init_cache(prompt, caches.num_slots(length + 1))
    state = CanvasState(
        tokens=jnp.where(masked, plan.mask_id, laid.tokens),
        masked=masked,
        generated=masked,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        prompt_end=prompt.lengths,
        start=jnp.argmax(masked, 1).astype(jnp.int32),
        end=laid.end,
        reach=reach,
        block=zero,
        num_initial=zero,
        step=zero,
        turn=zero,
        failed=zero == 1,
        is_cut=zero == 1,
        fresh=jnp.zeros_like(masked),
        settling=zero,
        cache=cache,
        memory=_memory(plan, batch, length),
        holes=None if prompt.masked is None else (),
        observed=calls.observed(plan, cache, length),
    )
    block = progress_of.block_of(plan, state)
    num_initial = progress_of.num_open(plan, state, block)
    state = state._replace(block=block, num_initial=num_initial)
    if not calls.is_prefilled(plan, prompt.masked is not None):
        return state, rows.info(zero)
    cache = calls.prefill(plan, params, prompt, state.cache)
    return state._replace(cache=cache), rows.prefill_info(plan.model, prompt)


def step(plan: Plan, params, keys, state: CanvasState):
    """Evaluate the window; commit, reopen, overwrite; move to the next block."""
    active = ~progress_of.done(plan, state)
    lanes = calls.look(plan, state, active)
    output, cache, cost = calls.evaluate(plan, params, state, lanes)
    told = calls.observed(plan, cache, state.tokens.shape[1])
    state = state._replace(observed=told)
    prediction, lens_memory = predict(plan, params, keys, state, lanes, output)
    # A row whose law is no number keeps what it has and stops.
    is_number = jnp.isfinite(prediction.log_prob) | ~lanes.open
    failed = state.failed | ~is_number.all(1)
    lanes = lanes._replace(open=lanes.open & ~failed[:, None])
    now = decisions.Moment(params, keys, state, lanes, prediction, active & ~failed)
    canvas = decisions.commit_some(plan, now)
    canvas = decisions.reopen(plan, now, canvas)
    canvas = decisions.overwrite(plan, now, canvas)
    new = state._replace(
        tokens=canvas.tokens,
        masked=canvas.masked,
        log_probs=canvas.log_probs,
        failed=failed,
        fresh=canvas.tokens != state.tokens,
        cache=cache,
        memory=(*canvas.memory[:3], lens_memory),
        turn=state.turn + active,
    )
    new = progress_of.advance(plan, cut(plan, now, new), state, active)
    per_call = jnp.where(active, plan.model.num_calls, 0)
    # Rules that ask a model of their own.
    asked = sum(rule.num_calls for rule in plan.rules if rule is not None)
    asked = jnp.where(active, asked, 0)
    return new, rows.info(
        per_call,
        num_calls=per_call,
        num_committed=progress_of.num_counted(plan, new)
        - progress_of.num_counted(plan, state),
        num_proposed=lanes.open.sum(1, dtype=jnp.int32),
        num_revoked=canvas.num_revoked,
        num_query_tokens=per_call * cost.asked,
        num_query_tokens_computed=per_call * cost.computed,
        num_draft_calls=asked,
        num_draft_tokens=asked * lanes.asked.sum(1, dtype=jnp.int32),
        num_draft_tokens_computed=asked * lanes.positions.shape[1],
        num_dispatches=jnp.ones((), jnp.int32),
    )


def predict(plan: Plan, params, keys, state: CanvasState, lanes, output):
    """Statistics of the lanes, and the lenses' memory of every position."""
    places = functools.partial(
        rng.noise, keys, rng.TARGET, lanes.positions, round=state.turn
    )
    of = None
    if "of_log_prob" in plan.wants:
        of = jnp.take_along_axis(state.tokens, lanes.positions, 1)
    head = plan.model.head(params["model"])
    if not plan.lenses:
        found = vocab_head.statistics(
            head, output.hidden, plan.wants, plan.sampling, places, of=of
        )
        return found, ()
    views = calls.views_of(state, lanes)
    known = jax.tree.map(
        lambda leaf: leaf[jnp.arange(leaf.shape[0])[:, None], lanes.positions],
        state.memory[3],
    )
    raw, seen = vocab_head.through(
        plan.lenses, params, views, head, output.hidden, plan.sampling, known
    )
    where = jnp.where(lanes.open, lanes.positions, state.tokens.shape[1])
    memory = jax.tree.map(
        lambda leaf, now: leaf.at[jnp.arange(leaf.shape[0])[:, None], where].set(
            now, mode="drop"
        ),
        state.memory[3],
        seen,
    )
    found = dense.statistics(raw, plan.wants, plan.sampling, places, of=of)
    return found, memory


def cut(plan: Plan, now: decisions.Moment, state: CanvasState) -> CanvasState:
    """The state with ends moved forward, and nothing open behind them."""
    if plan.truncate is None:
        return state
    row = calls.row_of(state, now.lanes)
    wanted = jax.vmap(plan.truncate.apply)(row, now.prediction)
    end = jnp.where(now.able, jnp.clip(wanted, state.prompt_end, state.end), state.end)
    inside = jnp.arange(state.tokens.shape[1])[None] < end[:, None]
    is_cut = end < state.end
    return state._replace(
        end=end,
        reach=jnp.where(is_cut, end, state.reach),
        masked=state.masked & inside,
        is_cut=state.is_cut | is_cut,
    )


def output(plan: Plan, state: CanvasState) -> Generation:
    """The result so far."""
    made = rows.generation(
        progress_of.progress(state), state.log_probs, state.failed, plan.model.eos_ids
    )
    at_length = made.stopped_by == STOPPED_BY.index("length")
    cut = jnp.where(at_length & state.is_cut, STOPPED_BY.index("truncated"), 0)
    return made._replace(stopped_by=made.stopped_by + cut)


def undrawn(model: Model) -> tuple[int, ...]:
    """The mask id, for methods whose confidences are of the law that still has it.

    LLaDA's and Dream's own code never take the mask out of the softmax.
    """
    return () if model.mask_id is None else (model.mask_id,)


def _checked(
    model, rules, lenses, blocks, window, refresh, stop, fill, truncate, sampling,
    max_new_tokens, settle, progress, max_steps,
) -> Plan:  # fmt: skip
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"masked diffusion needs a model trained with a mask token, but "
            f"{model.name} has predicts={model.predicts!r}: use draft-and-verify or "
            "Jacobi for a causal model"
        )
    if model.attention == "causal":
        raise ValueError(
            f"masked diffusion reads a canvas both ways, but tokens of {model.name} "
            "never see later ones: use a method of the frontier family"
        )
    if progress not in ("force", "schedule"):
        raise ValueError(f"{progress=} must be 'force' or 'schedule'")
    if progress == "schedule" and max_steps is None:
        raise ValueError("progress='schedule' needs max_steps: it ends the decode")
    if rules[1] is not None and max_steps is None and not rules[1].is_bounded:
        raise ValueError("a remask rule needs max_steps: it may undo every commit")
    if fill is not None and stop is None and max_steps is None:
        raise ValueError("fill has nothing to fill: set stop or max_steps")
    if refresh is not None and refresh.has_prefill:
        if model.attention != "block_causal":
            raise ValueError(
                f"the refresh keeps finished blocks, but {model.name} has "
                f"{model.attention} attention: use windows.at_block_start"
            )
    if settle and rules[2] is None:
        raise ValueError(f"{settle=} waits for edits: give an edit rule")
    parts = [part for part in (*rules, stop, fill, truncate) if part is not None]
    wanted = ("token", "log_prob", *(want for part in parts for want in part.wants))
    wants = tuple(dict.fromkeys(wanted))
    vocab_head.check_wants(wants)
    return Plan(
        model=model,
        mask_id=model.mask_id,
        rules=rules,
        lenses=lenses,
        blocks=grids.of(model, None) if blocks is None else blocks,
        window=window,
        refresh=refresh,
        stop=stop,
        fill=fill,
        truncate=truncate,
        sampling=without_mask(model, sampling),
        wants=wants,
        max_new_tokens=max_new_tokens,
        is_forced=progress == "force",
        settle=settle,
        last_turn=None if max_steps is None else max_steps - 1,
        runs_on=rules[1] is not None and progress == "schedule",
    )


def _memory(plan: Plan, batch: int, length: int) -> tuple:
    """What rules and lenses remember before the first step, leaves [B, ...]."""

    def spread(leaf, shape):
        leaf = jnp.asarray(leaf)
        return jnp.broadcast_to(leaf, (*shape, *leaf.shape))

    rules = [() if rule is None else rule.init(length) for rule in plan.rules]
    lenses = tuple(lens.init() for lens in plan.lenses)
    return (
        *jax.tree.map(lambda leaf: spread(leaf, (batch,)), rules),
        jax.tree.map(lambda leaf: spread(leaf, (batch, length)), lenses),
    )
