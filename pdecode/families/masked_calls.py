"""What a step of the masked family evaluates: lanes, one call, and rows for rules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    CanvasShape,
    Output,
    Prompt,
    Query,
    Row,
    SlotRun,
    View,
    Visibility,
)
from pdecode.rules import windows


class Looked(NamedTuple):
    """The lanes of one call, of all rows."""

    positions: Array  # int32 [B, W]
    stored: Array  # bool [B, W]  lanes that are read and stored: valid, and no probe
    asked: Array  # bool [B, W]  valid
    open: Array  # bool [B, W]  may be filled
    block_of: Array  # int32 [B, W]
    probe: Array | None  # bool [B, W]
    among: Array | None  # bool [B, W, W]
    stale: Array | None  # bool [B]  rows that ask for the wide call; None: never
    wide: "Wide | None"  # lanes of that call
    is_run: bool = False


class Wide(NamedTuple):
    """The lanes of a wide call: a run of positions."""

    positions: Array  # int32 [B, K]
    valid: Array  # bool [B, K]


class Cost(NamedTuple):
    """Lanes of one call."""

    asked: Array  # int32 [B]
    computed: Array  # int32 [B]


def is_prefilled(plan: Any, prompt_has_holes: bool) -> bool:
    """Whether the prompt is stored before the first step."""
    asks = plan.refresh is not None and plan.refresh.has_prefill
    return asks and not prompt_has_holes


def prefill(plan: Any, params, prompt: Prompt, cache: Any) -> Any:
    """The cache with the prompt's blocks, each as the model sees it."""
    batch, width = prompt.tokens.shape
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    stop = prompt.lengths[:, None]
    if plan.model.attention == "block_causal":
        stop = jnp.minimum(
            stop, (place // plan.model.block_len + 1) * plan.model.block_len
        )
    is_text = place < prompt.lengths[:, None]
    query = Query(
        tokens=jnp.where(is_text, prompt.tokens, 0),
        positions=place,
        # What padding leaves behind the text is written over before it is seen.
        slots=SlotRun(jnp.zeros_like(prompt.lengths)),
        visible=Visibility(jnp.zeros_like(place), stop),
    )
    return plan.model.encode(params["model"], query, cache)[1]


def look(plan: Any, state: Any, active: Array) -> Looked:
    """The lanes that each row's window names."""
    length = state.tokens.shape[1]
    grid = plan.blocks
    tail = (grid.whole or grid.length) + grid.length - 2 if grid.is_absolute else 0
    shape = CanvasShape(length, plan.max_new_tokens + tail, state.holes is not None)
    window = plan.window(grid, shape)
    before = bare_rows(state)
    lanes = jax.vmap(window.apply)(before)
    positions, valid = _inside(state, lanes.positions, lanes.valid)
    stored = valid if lanes.probe is None else valid & ~lanes.probe
    block_of = jax.vmap(grid.index)(positions, before)
    may_fill = jnp.take_along_axis(jax.vmap(grid.active)(before), positions, 1)
    still = jnp.take_along_axis(state.masked, positions, 1)
    stale = wide = None
    if plan.refresh is not None:
        if lanes.probe is not None or lanes.among is not None:
            raise ValueError("a window with probes cannot be refreshed: leave it out")
        stale = jax.vmap(plan.refresh.when)(before) & active
        if is_prefilled(plan, shape.has_holes) and not plan.refresh.is_first:
            stale &= state.turn > 0
        all_of_it = plan.refresh.window or windows.canvas
        refreshed = jax.vmap(all_of_it(grid, shape).apply)(before)
        wide = Wide(*_inside(state, refreshed.positions, refreshed.valid))
    return Looked(
        positions=positions,
        stored=stored,
        asked=valid,
        open=still & stored & may_fill & active[:, None],
        block_of=block_of,
        probe=lanes.probe,
        among=lanes.among,
        stale=stale,
        wide=wide,
        is_run=window.is_run,
    )


def evaluate(plan: Any, params, state: Any, lanes: Looked) -> tuple[Output, Any, Cost]:
    """(Output of the window, cache, Cost) of the step's one call.

    On a step with a stale row the whole batch makes the wide call: stale rows store all
    of it, the others their window, and each reads its window's lanes.
    """
    batch, length = state.tokens.shape
    width = lanes.positions.shape[1]
    num_asked = lanes.asked.sum(1, dtype=jnp.int32)

    def narrow(cache):
        if lanes.is_run and lanes.probe is None:
            # Of a whole canvas, what lies behind the row's end is never seen.
            stored = None if width == length else lanes.stored
            slots = SlotRun(lanes.positions[:, 0], stored)
        else:
            slots = jnp.where(lanes.stored, lanes.positions, caches.UNSTORED)
        query = _query(plan.model, state, lanes.positions, slots, lanes)
        return plan.model.apply(params["model"], query, cache)

    if lanes.stale is None or lanes.wide is None:
        output, cache = narrow(state.cache)
        return output, cache, Cost(num_asked, jnp.full((batch,), width))

    stale, place = lanes.stale, lanes.wide.positions

    def wide(cache):
        nth = jnp.arange(batch)[:, None]
        where = jnp.where(lanes.stored, lanes.positions, length)
        own = jnp.zeros((batch, length), bool).at[nth, where].set(True, mode="drop")
        own = jnp.take_along_axis(own, place, 1)
        slots = SlotRun(place[:, 0], jnp.where(stale[:, None], lanes.wide.valid, own))
        query = _query(plan.model, state, place, slots)
        output, cache = plan.model.apply(params["model"], query, cache)
        lane = jnp.clip(lanes.positions - place[:, :1], 0, place.shape[1] - 1)

        def of_lanes(leaf):
            index = jnp.expand_dims(lane, tuple(range(2, leaf.ndim)))
            return jnp.take_along_axis(leaf, index, 1)

        return jax.tree.map(of_lanes, output), cache

    any_stale = stale.any()
    output, cache = caches.when(any_stale, wide, narrow, state.cache)
    asked = jnp.where(stale, lanes.wide.valid.sum(1, dtype=jnp.int32), num_asked)
    computed = jnp.where(any_stale, place.shape[1], width)
    return output, cache, Cost(asked, jnp.broadcast_to(computed, (batch,)))


def observed(plan: Any, cache: Any, length: int) -> Array | None:
    """float32 [B, L, C]: what the model's calls told of each position, if it tells."""
    if plan.model.observed is None:
        return None
    return plan.model.observed(cache)[:, :length]


def _inside(state: Any, positions: Array, valid: Array) -> tuple[Array, Array]:
    """Positions that index the canvas, and which of them the row reaches."""
    valid &= (positions >= 0) & (positions < state.reach[:, None])
    return jnp.clip(positions, 0, state.tokens.shape[1] - 1), valid


def bare_rows(state: Any) -> Row:
    """Rows without lanes: what windows, blocks and refresh rules see."""
    none = jnp.zeros((state.tokens.shape[0], 0), jnp.int32)
    return _rows(state, none, none, none == 1, none == 1)


def row_of(state: Any, lanes: Looked) -> Row:
    """Rows as rules see them."""
    probe = jnp.zeros_like(lanes.open)
    if lanes.probe is not None:
        probe = lanes.probe & lanes.asked
    return _rows(state, lanes.positions, lanes.block_of, lanes.open, probe)


def views_of(state: Any, lanes: Looked) -> View:
    """What a lens sees of every lane, leaves [B, W, ...]."""
    batch, width = lanes.positions.shape
    inside = jnp.arange(state.tokens.shape[1])[None] < state.end[:, None]
    known = ~state.masked & inside

    def spread(leaf):
        return jnp.broadcast_to(leaf[:, None], (batch, width, *leaf.shape[1:]))

    return View(
        tokens=spread(state.tokens),
        known=spread(known),
        position=lanes.positions,
        prompt_end=spread(state.prompt_end),
    )


def _rows(
    state: Any, positions: Array, block_of: Array, opened: Array, probe: Array
) -> Row:
    return Row(
        tokens=state.tokens,
        masked=state.masked,
        generated=state.generated,
        prompt_end=state.prompt_end,
        start=state.start,
        end=state.end,
        block=state.block,
        num_initial=state.num_initial,
        step=state.step,
        turn=state.turn,
        positions=positions,
        block_of=block_of,
        open=opened,
        probe=probe,
        log_probs=state.log_probs,
        fresh=state.fresh,
        memory=state.memory[0],
        observed=state.observed,
    )


def _query(model, state, positions, slots, lanes: Looked | None = None) -> Query:
    """The call that evaluates `positions` and stores them at `slots`."""
    stop = seen_until(model, positions, state.reach)
    tokens = jnp.take_along_axis(state.tokens, positions, 1)
    visible = Visibility(start=jnp.zeros_like(positions), stop=stop)
    if lanes is not None and (lanes.probe is not None or lanes.among is not None):
        tokens, visible = _with_probes(model, state, lanes, tokens, visible)
    return Query(tokens=tokens, positions=positions, slots=slots, visible=visible)


def seen_until(model, positions: Array, end: Array) -> Array:
    """int32 [B, Q]: one past the last slot that `positions` see, at most `end` [B]."""
    stop = jnp.broadcast_to(end[:, None], positions.shape)
    if model.attention != "block_causal":
        return stop
    n = model.block_len
    return jnp.minimum(stop, (positions // n + 1) * n)


def _with_probes(model, state, lanes: Looked, tokens: Array, visible: Visibility):
    """The call's own keys are seen through `among`, older ones where not rewritten."""
    batch, length = state.tokens.shape
    num_slots = caches.num_slots(length + 1)
    where = jnp.where(lanes.stored, lanes.positions, num_slots)
    fresh = jnp.zeros((batch, num_slots), bool)
    fresh = fresh.at[jnp.arange(batch)[:, None], where].set(True, mode="drop")
    among = lanes.among
    if among is None:
        among = jnp.broadcast_to(
            lanes.stored[:, None], (*lanes.stored.shape, lanes.stored.shape[1])
        )
    among &= lanes.asked[:, None] & (lanes.positions[:, None] < visible.stop[..., None])
    if lanes.probe is not None:
        tokens = jnp.where(lanes.probe, model.mask_id, tokens)
    return tokens, visible._replace(written=~fresh, among=among)
