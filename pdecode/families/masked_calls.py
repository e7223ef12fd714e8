"""What a step of the masked family evaluates: lanes, one call, and rows for rules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    CanvasShape,
    Output,
    Query,
    Row,
    SlotRun,
    View,
    Visibility,
)


class Looked(NamedTuple):
    """The lanes of one call, of all rows."""

    positions: Array  # int32 [B, W]
    stored: Array  # bool [B, W]  lanes that are read and stored: valid, and no probe
    asked: Array  # bool [B, W]  valid
    open: Array  # bool [B, W]  may be filled
    block_of: Array  # int32 [B, W]
    probe: Array | None  # bool [B, W]
    among: Array | None  # bool [B, W, W]
    stale: Array | None  # bool [B]  rows that ask for their whole canvas; None: never
    is_run: bool = False


class Cost(NamedTuple):
    """Lanes of one call."""

    asked: Array  # int32 [B]
    computed: Array  # int32 [B]


def look(plan: Any, state: Any, active: Array) -> Looked:
    """The lanes that each row's window names."""
    length = state.tokens.shape[1]
    grid = plan.blocks
    tail = 2 * (grid.length - 1) if grid.is_absolute else 0
    shape = CanvasShape(length, plan.max_new_tokens + tail, state.holes is not None)
    window = plan.window(grid, shape)
    before = bare_rows(state)
    lanes = jax.vmap(window.apply)(before)
    valid = lanes.valid & (lanes.positions >= 0)
    valid &= lanes.positions < state.reach[:, None]
    positions = jnp.clip(lanes.positions, 0, length - 1)
    stored = valid if lanes.probe is None else valid & ~lanes.probe
    block_of = jax.vmap(grid.index)(positions, before)
    may_fill = jnp.take_along_axis(jax.vmap(grid.active)(before), positions, 1)
    still = jnp.take_along_axis(state.masked, positions, 1)
    stale = None
    if plan.refresh is not None:
        if lanes.probe is not None or lanes.among is not None:
            raise ValueError("a window with probes cannot be refreshed: leave it out")
        stale = jax.vmap(plan.refresh)(before) & active
    return Looked(
        positions=positions,
        stored=stored,
        asked=valid,
        open=still & stored & may_fill & active[:, None],
        block_of=block_of,
        probe=lanes.probe,
        among=lanes.among,
        stale=stale,
        is_run=window.is_run,
    )


def evaluate(plan: Any, params, state: Any, lanes: Looked) -> tuple[Output, Any, Cost]:
    """(Output of the window, cache, Cost) of the step's one call.

    On a step with a stale row the whole batch makes one call of the canvas: stale rows
    store all of it, the others their window, and each reads its window's lanes.
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

    if lanes.stale is None:
        output, cache = narrow(state.cache)
        return output, cache, Cost(num_asked, jnp.full((batch,), width))

    stale = lanes.stale
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    in_row = place < state.reach[:, None]

    def wide(cache):
        nth = jnp.arange(batch)[:, None]
        where = jnp.where(lanes.stored, lanes.positions, length)
        is_asked = jnp.zeros_like(in_row).at[nth, where].set(True, mode="drop")
        is_asked = jnp.where(stale[:, None], in_row, is_asked)
        slots = SlotRun(jnp.zeros_like(num_asked), is_asked)
        query = _query(plan.model, state, place, slots)
        output, cache = plan.model.apply(params["model"], query, cache)

        def of_lanes(leaf):
            index = jnp.expand_dims(lanes.positions, tuple(range(2, leaf.ndim)))
            return jnp.take_along_axis(leaf, index, 1)

        return jax.tree.map(of_lanes, output), cache

    any_stale = stale.any()
    output, cache = caches.when(any_stale, wide, narrow, state.cache)
    asked = jnp.where(stale, in_row.sum(1, dtype=jnp.int32), num_asked)
    computed = jnp.where(any_stale, length, width)
    return output, cache, Cost(asked, jnp.broadcast_to(computed, (batch,)))


def bare_rows(state: Any) -> Row:
    """Rows without lanes: what windows, blocks and refresh rules see."""
    none = jnp.zeros((state.tokens.shape[0], 0), jnp.int32)
    return _rows(state, none, none, none == 1)


def row_of(state: Any, lanes: Looked) -> Row:
    """Rows as rules see them."""
    return _rows(state, lanes.positions, lanes.block_of, lanes.open)


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


def _rows(state: Any, positions: Array, block_of: Array, opened: Array) -> Row:
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
    )


def _query(model, state, positions, slots, lanes: Looked | None = None) -> Query:
    """The call that evaluates `positions` and stores them at `slots`."""
    stop = jnp.broadcast_to(state.reach[:, None], positions.shape)
    if model.attention == "block_causal":
        n = model.block_len
        stop = jnp.minimum(stop, (positions // n + 1) * n)
    tokens = jnp.take_along_axis(state.tokens, positions, 1)
    visible = Visibility(start=jnp.zeros_like(positions), stop=stop)
    if lanes is not None and (lanes.probe is not None or lanes.among is not None):
        tokens, visible = _with_probes(model, state, lanes, tokens, visible)
    return Query(tokens=tokens, positions=positions, slots=slots, visible=visible)


def _with_probes(model, state, lanes: Looked, tokens: Array, visible: Visibility):
    """The call's own keys are seen through `among`, older ones where not rewritten."""
    batch, length = state.tokens.shape
    where = jnp.where(lanes.stored, lanes.positions, length + 1)
    fresh = jnp.zeros((batch, length + 1), bool)
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
