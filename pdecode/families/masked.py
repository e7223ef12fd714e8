"""The masked family: a canvas of open positions, filled a few at a time.

A step evaluates one window of every row, asks a commit rule which open positions to
fill with their sampled tokens, and may ask a remask rule which to reopen. What a call
recomputes is the window's business, when the whole canvas is recomputed is the refresh
rule's; a slot is the position it holds.
"""

import functools
from collections.abc import Callable
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
    Prompt,
    Query,
    Row,
    Rule,
    Sampling,
    SlotRun,
    StepInfo,
    Visibility,
    Window,
)
from pdecode.families import rows as eos
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import windows


class CanvasState(NamedTuple):
    """Carry of the loop."""

    tokens: Array  # int32 [B, L]
    masked: Array  # bool [B, L]  still open
    generated: Array  # bool [B, L]  open when decoding began
    log_probs: Array  # float32 [B, L]
    prompt_end: Array  # int32 [B]
    start: Array  # int32 [B]  first position to fill
    end: Array  # int32 [B]
    block: Array  # int32 [B]  active block, counted from `start`
    num_initial: Array  # int32 [B]  open positions of the block when it began
    step: Array  # int32 [B]  steps taken in the block
    turn: Array  # int32 [B]  steps taken in all
    cache: Cache
    commit: Any  # memory of the commit rule
    remask: Any  # memory of the remask rule


def masked_diffusion(
    model: Model,
    commit: Rule,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    block_length: int | None = None,
    remask: Rule | None = None,
    window: Callable[[int], Window] = windows.canvas,
    refresh: Callable[[Row], Array] | None = None,
    progress: str = "force",
    max_steps: int | None = None,
) -> Decoder:
    """A Decoder that fills the canvas by `commit`, block by block.

    Blocks of `block_length` (None: one) are filled in order, counted from each row's
    first open position. `window(L)` chooses what a call evaluates. `refresh(row)` asks
    for the whole canvas on this step; where any row asks, the batch makes one wide
    call. `progress="force"` commits at least one position a step; `"schedule"` leaves
    the pace to the rule, and the step `max_steps - 1` fills whatever is open; with a
    remask rule it then also runs to the end. Raises ValueError for a causal model.
    """
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"masked diffusion needs a model trained with a mask token, but "
            f"{model.name} has predicts={model.predicts!r}: use draft-and-verify or "
            "Jacobi for a causal model"
        )
    if progress not in ("force", "schedule"):
        raise ValueError(f"{progress=} must be 'force' or 'schedule'")
    if progress == "schedule" and max_steps is None:
        raise ValueError("progress='schedule' needs max_steps: it ends the decode")
    if remask is not None and max_steps is None:
        raise ValueError("a remask rule needs max_steps: it may undo every commit")
    if model.attention == "block_causal" and not model.block_len:
        raise ValueError(f"{model.name} is block-causal, but block_len is not set")
    # Forced progress ends by itself, after one step a position at most.
    limit = jnp.iinfo(jnp.int32).max if max_steps is None else max_steps
    width_of_block = max_new_tokens if block_length is None else block_length
    if model.mask_id not in sampling.undrawn:
        banned = tuple(dict.fromkeys((model.mask_id, *sampling.banned)))
        sampling = sampling._replace(banned=banned)
    rules = (commit,) if remask is None else (commit, remask)
    wants = ("token", "log_prob", *(want for rule in rules for want in rule.wants))
    wants = tuple(dict.fromkeys(wants))
    vocab_head.check_wants(wants)

    def init(params, keys, prompt: Prompt):
        del params, keys
        batch, width = prompt.tokens.shape
        length = prompts.buffer_length(prompt, max_new_tokens, model)
        place = jnp.arange(length)[None]
        end = prompt.lengths + jnp.minimum(prompt.max_new, max_new_tokens)
        is_text = place < prompt.lengths[:, None]
        masked = ~is_text & (place < end[:, None])
        tokens = jnp.zeros((batch, length), jnp.int32)
        tokens = tokens.at[:, :width].set(prompt.tokens)
        if prompt.masked is not None:
            holes = jnp.zeros_like(masked).at[:, :width].set(prompt.masked)
            masked |= holes & is_text
        tokens = jnp.where(masked, model.mask_id, jnp.where(is_text, tokens, 0))
        start = jnp.argmax(masked, 1).astype(jnp.int32)
        zero = jnp.zeros(batch, jnp.int32)
        memory = [
            jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)),
                () if rule is None else rule.init(length),
            )
            for rule in (commit, remask)
        ]
        in_block = masked & (place < (start + width_of_block)[:, None])
        state = CanvasState(
            tokens=tokens,
            masked=masked,
            generated=masked,
            log_probs=jnp.zeros((batch, length), jnp.float32),
            prompt_end=prompt.lengths,
            start=start,
            end=end,
            block=zero,
            num_initial=in_block.sum(1, dtype=jnp.int32),
            step=zero,
            turn=zero,
            # One slot more: a canvas-sized call must not alias the whole cache.
            cache=model.init_cache(prompt, length + 1),
            commit=memory[0],
            remask=memory[1],
        )
        return state, StepInfo(*[zero] * 6, num_dispatches=jnp.zeros((), jnp.int32))

    def rows_of(state: CanvasState, positions, opened) -> Row:
        return Row(
            tokens=state.tokens,
            masked=state.masked,
            generated=state.generated,
            start=state.start,
            end=state.end,
            num_initial=state.num_initial,
            step=state.step,
            block=state.block,
            turn=state.turn,
            positions=positions,
            open=opened,
        )

    def step(params, keys, state: CanvasState):
        active = ~done(state)
        batch, length = state.tokens.shape
        rows = jnp.arange(batch)[:, None]

        nowhere = jnp.zeros((batch, 1), jnp.int32)
        view = window(length)
        before = rows_of(state, nowhere, nowhere == 1)
        positions, valid = jax.vmap(view.apply)(before)
        valid &= (positions >= 0) & (positions < state.end[:, None])
        positions = jnp.clip(positions, 0, length - 1)
        stale = jnp.zeros(batch, bool)
        if refresh is not None:
            stale = jax.vmap(refresh)(before) & active
        hidden, cache, asked, computed = _evaluate(
            model, params, state, positions, valid, stale,
            has_refresh=bool(refresh), is_run=view.is_run,
        )  # fmt: skip

        places = functools.partial(
            rng.noise, keys, rng.TARGET, positions, round=state.turn
        )
        prediction = vocab_head.statistics(
            model.head(params), hidden, wants, sampling, places
        )

        block_of = (positions - state.start[:, None]) // width_of_block
        still = jnp.take_along_axis(state.masked, positions, 1)
        opened = still & valid & (block_of == state.block[:, None]) & active[:, None]
        row = rows_of(state, positions, opened)
        rule_keys = rng.row_noise(keys, rng.COMMIT, state.turn)
        chosen, commit_memory = jax.vmap(commit.apply)(
            rule_keys, row, prediction, state.commit
        )
        chosen &= opened
        if progress == "force":
            first = opened & (jnp.cumsum(opened, 1) == 1)
            chosen |= first & ~chosen.any(1, keepdims=True)
        is_last = state.turn[:, None] == limit - 1
        chosen |= still & valid & active[:, None] & is_last

        where = jnp.where(chosen, positions, length)
        tokens = state.tokens.at[rows, where].set(prediction.token, mode="drop")
        masked = state.masked.at[rows, where].set(False, mode="drop")
        log_probs = state.log_probs.at[rows, where].set(
            prediction.log_prob.astype(jnp.float32), mode="drop"
        )
        num_revoked = jnp.zeros(batch, jnp.int32)
        remask_memory = state.remask
        if remask is not None:
            rule_keys = rng.row_noise(keys, rng.REMASK, state.turn)
            after = row._replace(tokens=tokens, masked=masked)
            reopened, remask_memory = jax.vmap(remask.apply)(
                rule_keys, after, prediction, state.remask
            )
            may = jnp.take_along_axis(state.generated, positions, 1)
            may &= ~jnp.take_along_axis(masked, positions, 1) & valid & active[:, None]
            reopened &= may & ~is_last
            where = jnp.where(reopened, positions, length)
            tokens = tokens.at[rows, where].set(model.mask_id, mode="drop")
            masked = masked.at[rows, where].set(True, mode="drop")
            num_revoked = reopened.sum(1, dtype=jnp.int32)

        # The active block is that of the leftmost open position.
        place = jnp.arange(length)[None]
        left = jnp.argmax(masked, 1).astype(jnp.int32)
        block = jnp.where(
            masked.any(1), (left - state.start) // width_of_block, state.block
        )
        moved = block != state.block
        in_block = (place - state.start[:, None]) // width_of_block == block[:, None]
        num_open = (masked & in_block).sum(1, dtype=jnp.int32)
        per_call = jnp.where(active, model.num_calls, 0)
        new_state = CanvasState(
            tokens=tokens,
            masked=masked,
            generated=state.generated,
            log_probs=log_probs,
            prompt_end=state.prompt_end,
            start=state.start,
            end=state.end,
            block=block,
            num_initial=jnp.where(moved, num_open, state.num_initial),
            step=jnp.where(moved, 0, state.step + active),
            turn=state.turn + active,
            cache=cache,
            commit=commit_memory,
            remask=remask_memory,
        )
        return new_state, StepInfo(
            num_calls=per_call,
            num_committed=num_counted(new_state) - num_counted(state),
            num_proposed=opened.sum(1, dtype=jnp.int32),
            num_revoked=num_revoked,
            num_query_tokens=per_call * asked,
            num_query_tokens_computed=per_call * computed,
            num_dispatches=jnp.ones((), jnp.int32),
        )

    def first_eos(state):
        committed = state.generated & ~state.masked
        return eos.first(
            state.tokens, committed, state.prompt_end, state.end, model.eos_ids
        )

    def num_counted(state: CanvasState) -> Array:
        """Filled positions [B] up to the first EOS: what lies behind never counts."""
        last, _ = first_eos(state)
        place = jnp.arange(state.tokens.shape[1])[None]
        filled = state.generated & ~state.masked & (place <= last[:, None])
        return filled.sum(1, dtype=jnp.int32)

    def done(state: CanvasState) -> Array:
        if remask is not None and progress == "schedule":
            # A full canvas may be reopened: only the end of the schedule ends a row.
            return state.turn >= limit
        last, _ = first_eos(state)
        place = jnp.arange(state.tokens.shape[1])[None]
        return ~(state.masked & (place < last[:, None])).any(1)

    def output(state: CanvasState) -> Generation:
        last, saw_eos = first_eos(state)
        return Generation(
            tokens=state.tokens,
            start=state.prompt_end,
            lengths=last - state.prompt_end,
            log_probs=state.log_probs,
            stopped_by=saw_eos.astype(jnp.int32),
        )

    return Decoder(init, step, done, output, limit)


def undrawn(model: Model) -> tuple[int, ...]:
    """The mask id, for methods whose confidences are of the law that still has it.

    LLaDA's and Dream's own code never take the mask out of the softmax.
    """
    return () if model.mask_id is None else (model.mask_id,)


def steps_per_block(max_new_tokens: int, steps: int | None, block_length: int) -> int:
    """Each block's share of `steps` (None: one a token); ValueError if uneven."""
    if max_new_tokens % block_length:
        raise ValueError(
            f"block_length={block_length} must divide max_new_tokens={max_new_tokens}"
        )
    num_blocks = max_new_tokens // block_length
    steps = max_new_tokens if steps is None else steps
    if steps % num_blocks:
        raise ValueError(
            f"steps={steps} must be a multiple of the {num_blocks} blocks of "
            f"{block_length} in {max_new_tokens} tokens"
        )
    return steps // num_blocks


def _evaluate(model, params, state, positions, valid, stale, *, has_refresh, is_run):
    """Hidden [B, W, E] of the window, the cache, and lanes asked and computed [B].

    On a step with a stale row the whole batch makes one call of the canvas: stale rows
    store all of it, the others their window, and each reads its window's hidden.
    """
    batch, length = state.tokens.shape
    width = positions.shape[1]
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    in_row = place < state.end[:, None]
    num_valid = valid.sum(1, dtype=jnp.int32)

    def narrow(cache):
        if is_run:
            # Of a whole canvas, what lies behind the row's end is never seen.
            slots = SlotRun(positions[:, 0], None if width == length else valid)
        else:
            slots = jnp.where(valid, positions, caches.UNSTORED)
        query = _query(model, state, positions, slots)
        output, cache = model.apply(params, query, cache)
        return output.hidden, cache

    if not has_refresh:
        hidden, cache = narrow(state.cache)
        return hidden, cache, num_valid, jnp.full((batch,), width)

    def wide(cache):
        rows = jnp.arange(batch)[:, None]
        where = jnp.where(valid, positions, length)
        is_asked = jnp.zeros_like(in_row).at[rows, where].set(True, mode="drop")
        is_asked = jnp.where(stale[:, None], in_row, is_asked)
        slots = SlotRun(jnp.zeros_like(num_valid), is_asked)
        output, cache = model.apply(params, _query(model, state, place, slots), cache)
        return jnp.take_along_axis(output.hidden, positions[..., None], 1), cache

    any_stale = stale.any()
    hidden, cache = caches.when(any_stale, wide, narrow, state.cache)
    asked = jnp.where(stale, in_row.sum(1, dtype=jnp.int32), num_valid)
    computed = jnp.where(any_stale, length, width)
    return hidden, cache, asked, jnp.broadcast_to(computed, (batch,))


def _query(model: Model, state: CanvasState, positions, slots) -> Query:
    """The call that evaluates `positions` and stores them at `slots`."""
    stop = jnp.broadcast_to(state.end[:, None], positions.shape)
    if model.attention == "block_causal" and model.block_len:
        n = model.block_len
        stop = jnp.minimum(stop, (positions // n + 1) * n)
    return Query(
        tokens=jnp.take_along_axis(state.tokens, positions, 1),
        positions=positions,
        slots=slots,
        visible=Visibility(start=jnp.zeros_like(positions), stop=stop),
    )
