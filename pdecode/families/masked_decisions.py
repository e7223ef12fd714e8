"""What a step of the masked family decides: what to fill, reopen, overwrite."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Params, Prediction
from pdecode.families.masked_calls import Looked, row_of

COMMIT, REMASK, EDIT = range(3)  # places in `Plan.rules` and in the state's memory


class Moment(NamedTuple):
    """What the decisions of one step read."""

    params: dict[str, Params]
    keys: Array  # [B]
    state: Any  # before the step
    lanes: Looked
    prediction: Prediction
    able: Array  # bool [B]  rows that are neither done nor failed


class Canvas(NamedTuple):
    """What the decisions change."""

    tokens: Array  # int32 [B, L]
    masked: Array  # bool [B, L]
    log_probs: Array  # float32 [B, L]
    memory: tuple
    num_revoked: Array  # int32 [B]


def check_roles(plan: Any, params: dict[str, Params]) -> None:
    """Raises ValueError if a part wants params of a role that is not there."""
    for part in (*plan.rules, *plan.lenses):
        if part is not None and part.role is not None and part.role not in params:
            raise ValueError(
                f"a {type(part).__name__.lower()} reads the params of the role "
                f"{part.role!r}, but there are {sorted(params)}: pass them by role"
            )


def commit_some(plan: Any, now: Moment) -> Canvas:
    """The canvas with what the commit rule chose."""
    state, lanes, prediction = now.state, now.lanes, now.prediction
    blank = Canvas(
        state.tokens, state.masked, state.log_probs, state.memory,
        jnp.zeros_like(state.turn),
    )  # fmt: skip
    row = row_of(state, lanes)
    chosen, memory = _decide(plan, COMMIT, rng.COMMIT, now, row)
    chosen &= lanes.open
    if plan.is_forced:  # at least the first open lane
        first = lanes.open & (jnp.cumsum(lanes.open, 1) == 1)
        chosen |= first & ~chosen.any(1, keepdims=True)
    tokens = prediction.token
    if plan.last_turn is not None or plan.stop is not None:
        final = jnp.take_along_axis(state.masked, lanes.positions, 1)
        final &= lanes.stored & now.able[:, None] & _ends(plan, now, row)[:, None]
        if plan.fill is not None:
            filled = jax.vmap(plan.fill.apply)(row, prediction)
            tokens = jnp.where(final, filled, tokens)
        chosen |= final
    canvas = _write(blank, lanes, chosen, tokens, False, prediction.log_prob)
    return canvas._replace(memory=_kept(canvas.memory, COMMIT, memory))


def reopen(plan: Any, now: Moment, canvas: Canvas) -> Canvas:
    """The canvas without what the remask rule takes back."""
    if plan.rules[REMASK] is None:
        return canvas
    row = _after(now, canvas)
    chosen, memory = _decide(plan, REMASK, rng.REMASK, now, row)
    chosen &= _may_change(now, canvas)
    if plan.last_turn is not None:
        chosen &= (now.state.turn != plan.last_turn)[:, None]
    after = _write(canvas, now.lanes, chosen, plan.mask_id, True)
    return _counted(canvas, after, after.masked & ~canvas.masked, REMASK, memory)


def overwrite(plan: Any, now: Moment, canvas: Canvas) -> Canvas:
    """The canvas with what the edit rule replaces by the tokens drawn now."""
    if plan.rules[EDIT] is None:
        return canvas
    state, lanes, prediction = now.state, now.lanes, now.prediction
    row = _after(now, canvas)
    chosen, memory = _decide(plan, EDIT, rng.EDIT, now, row)
    # What this step committed is as new as what would replace it.
    was_filled = ~jnp.take_along_axis(state.masked, lanes.positions, 1)
    differs = jnp.take_along_axis(state.tokens, lanes.positions, 1) != prediction.token
    chosen &= _may_change(now, canvas) & was_filled & differs
    after = _write(canvas, lanes, chosen, prediction.token, False, prediction.log_prob)
    return _counted(canvas, after, after.tokens != canvas.tokens, EDIT, memory)


def _ends(plan: Any, now: Moment, row) -> Array:
    """bool [B]: this step fills whatever is open."""
    ends = jnp.zeros_like(now.able)
    if plan.last_turn is not None:
        ends |= now.state.turn == plan.last_turn
    if plan.stop is not None:
        ends |= jax.vmap(plan.stop.apply)(row, now.prediction)
    return ends


def _decide(plan: Any, nth: int, purpose: int, now: Moment, row):
    """(lanes bool [B, W], memory) of one rule for every row."""
    rule = plan.rules[nth]
    own = None if rule.role is None else now.params[rule.role]
    drawn = rng.row_noise(now.keys, purpose, now.state.turn)
    decide = jax.vmap(functools.partial(rule.apply, own))
    return decide(drawn, row, now.prediction, now.state.memory[nth])


def _after(now: Moment, canvas: Canvas):
    """Rows as they are after the commit."""
    row = row_of(now.state, now.lanes)
    return row._replace(
        tokens=canvas.tokens, masked=canvas.masked, log_probs=canvas.log_probs
    )


def _may_change(now: Moment, canvas: Canvas) -> Array:
    """bool [B, W]: filled lanes that were open when decoding began."""
    filled = now.state.generated & ~canvas.masked
    filled = jnp.take_along_axis(filled, now.lanes.positions, 1)
    return filled & now.lanes.asked & now.able[:, None]


def _counted(
    before: Canvas, after: Canvas, changed: Array, nth: int, memory: Any
) -> Canvas:
    """`after` with what was `changed` (bool [B, L]) told as revoked."""
    return after._replace(
        memory=_kept(before.memory, nth, memory),
        num_revoked=before.num_revoked + changed.sum(1, dtype=jnp.int32),
    )


def _write(
    canvas: Canvas,
    lanes: Looked,
    chosen: Array,
    tokens: Array | int,
    masked: bool,
    log_prob: Array | None = None,
) -> Canvas:
    """The canvas with the lanes `chosen` (bool [B, W]) changed."""
    nth = jnp.arange(chosen.shape[0])[:, None]
    where = jnp.where(chosen, lanes.positions, canvas.tokens.shape[1])
    log_probs = canvas.log_probs
    if log_prob is not None:
        log_probs = log_probs.at[nth, where].set(
            log_prob.astype(jnp.float32), mode="drop"
        )
    return canvas._replace(
        tokens=canvas.tokens.at[nth, where].set(tokens, mode="drop"),
        masked=canvas.masked.at[nth, where].set(masked, mode="drop"),
        log_probs=log_probs,
    )


def _kept(memory: tuple, nth: int, new: Any) -> tuple:
    return (*memory[:nth], new, *memory[nth + 1 :])
