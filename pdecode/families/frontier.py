"""The frontier family: any order, a group at a time, undecided positions absent.

For models with position queries (ARPG, LPD, any-order autoregressive). Keys and values
lie in the cache in commit order, so what a query may see is one interval. Each step is
one call: the tokens committed by the last step are stored, and the next group's
position queries, which nobody stores, read the prefix and those tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import (
    Cache,
    Decoder,
    Generation,
    Lens,
    Model,
    Prompt,
    Query,
    Sampling,
    SlotRun,
    View,
    Visibility,
)
from pdecode.families import rows
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["frontier"]


class FrontierState(NamedTuple):
    """Carry of the loop."""

    tokens: Array  # int32 [B, L]
    log_probs: Array  # float32 [B, L]
    decided: Array  # bool [B, L]  prompt and committed positions
    prompt_end: Array  # int32 [B]
    end: Array  # int32 [B]
    group: Array  # int32 [B]  next group of the order
    num_cached: Array  # int32 [B]  keys in the cache, in commit order
    pending: Array  # int32 [B, G]  positions committed but not cached; -1 pads
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    cache: Cache


class Plan(NamedTuple):
    """What a frontier decode is made of, checked once."""

    model: Model
    mask_id: int
    groups: np.ndarray  # int32 [K, G]  positions of each group in turn; -1 pads
    lenses: tuple[Lens, ...]
    sampling: Sampling
    max_new_tokens: int
    is_group_seen: bool  # queries see each other
    is_fresh_causal: bool  # tokens of one group see those before them alone


class Asked(NamedTuple):
    """The next group's positions."""

    positions: Array  # int32 [B, G]
    valid: Array  # bool [B, G]


def frontier(
    model: Model,
    rank: np.ndarray,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    lenses: Sequence[Lens] = (),
    is_group_seen: bool = False,
    is_fresh_causal: bool = False,
) -> Decoder:
    """A Decoder that fills `rank` (int [N], N >= max_new_tokens) group by group.

    Positions of equal rank are drawn in one call, independently given what is decided.
    Ranks count from the end of each row's prompt; positions past a row's end are
    skipped. The law sampled is the model's own over these groups, after `lenses`; with
    groups of one it is exactly the model's any-order law. Queries of a group do not see
    each other, or do (`is_group_seen`); its tokens, once drawn, see all of the group,
    or those before them (`is_fresh_causal`): what the model was trained with. Raises
    ValueError for a causal model or a rank that is too short.
    """
    if model.predicts != "masked" or model.mask_id is None:
        raise ValueError(
            f"the frontier family asks positions by a mask token, but {model.name} has "
            f"predicts={model.predicts!r}: use draft-and-verify for a causal model"
        )
    if model.slides:
        raise ValueError(
            f"{model.name} has layers that see a window of positions, but the slots of "
            "the frontier family are in the order of decisions: take a model whose "
            "layers all see everything"
        )
    rank = np.asarray(rank)
    if rank.ndim != 1 or len(rank) < max_new_tokens:
        raise ValueError(
            f"rank has shape {rank.shape}, but max_new_tokens={max_new_tokens}: "
            "give a rank to every position"
        )
    if any(lens.init() != () for lens in lenses):
        raise ValueError("the frontier family keeps no memory of positions for a lens")
    groups = groups_of(rank[:max_new_tokens])
    plan = Plan(
        model,
        model.mask_id,
        groups,
        tuple(lenses),
        without_mask(model, sampling),
        max_new_tokens,
        is_group_seen,
        is_fresh_causal,
    )
    is_exact = groups.shape[1] == 1 and not lenses
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(done, plan),
        output=functools.partial(output, plan),
        max_steps=len(groups),
        guarantee="exact" if is_exact else "lossy",
    )


def init(plan: Plan, params, keys, prompt: Prompt):
    """The whole prompt in the cache, in its own order."""
    del keys
    rows.no_holes(prompt, "the frontier family")
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model)
    batch, length = laid.tokens.shape
    # A run of slots may not be longer than the cache.
    num_slots = max(length + 1, 2 * plan.groups.shape[1])
    cache = plan.model.init_cache(prompt, caches.num_slots(num_slots))
    _, cache = prompts.prefill(
        plan.model, params["model"], prompt, cache, stop=prompt.lengths
    )
    zero = jnp.zeros(batch, jnp.int32)
    state = FrontierState(
        tokens=laid.tokens,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        decided=laid.is_text,
        prompt_end=prompt.lengths,
        end=laid.end,
        group=zero,
        num_cached=prompt.lengths,
        pending=jnp.full((batch, plan.groups.shape[1]), -1, jnp.int32),
        failed=zero == 1,
        cache=cache,
    )
    return state, rows.prefill_info(plan.model, prompt)


def step(plan: Plan, params, keys, state: FrontierState):
    """Store the last group's tokens, ask for the next group, commit it."""
    active = ~done(plan, state)
    asked = next_group(plan, state, active)
    query, num_lanes = frontier_query(plan, state, asked)
    output, cache = plan.model.apply(params["model"], query, state.cache)
    hidden = output.hidden[:, plan.groups.shape[1] :]
    prediction = predict(plan, params, keys, state, asked, hidden)
    new, chosen = committed(state, asked, prediction)
    new = new._replace(
        group=state.group + active,
        num_cached=state.num_cached + (state.pending >= 0).sum(1, dtype=jnp.int32),
        pending=jnp.where(chosen, asked.positions, -1),
        cache=cache,
    )
    # A group that lies past the row's end asks nothing: no call for that row.
    per_call = jnp.where(asked.valid.any(1), plan.model.num_calls, 0)
    return new, rows.info(
        per_call,
        num_calls=per_call,
        num_committed=counted(plan, new) - counted(plan, state),
        num_proposed=asked.valid.sum(1, dtype=jnp.int32),
        num_query_tokens=per_call * num_lanes,
        num_query_tokens_computed=per_call * query.tokens.shape[1],
        num_dispatches=jnp.ones((), jnp.int32),
    )


def next_group(plan: Plan, state: FrontierState, active: Array) -> Asked:
    """The positions of each row's next group."""
    table = jnp.asarray(plan.groups)
    offset = table[jnp.minimum(state.group, len(plan.groups) - 1)]  # [B, G], -1 pads
    asked = state.prompt_end[:, None] + offset
    valid = (offset >= 0) & (asked < state.end[:, None]) & active[:, None]
    return Asked(jnp.where(valid, asked, 0), valid)


def frontier_query(
    plan: Plan, state: FrontierState, asked: Asked
) -> tuple[Query, Array]:
    """The call, and how many of its lanes each row asks for, int32 [B].

    Lanes: [pending tokens, stored in commit order | position queries, not stored].
    """
    batch, width = state.pending.shape
    is_real = state.pending >= 0
    real = jnp.maximum(state.pending, 0)
    is_lane = jnp.concatenate([is_real, asked.valid], 1)
    is_key = jnp.concatenate([is_real, jnp.zeros_like(asked.valid)], 1)
    # Everyone sees the fresh tokens; a position query also stands for itself.
    among = jnp.broadcast_to(is_key[:, None], (batch, 2 * width, 2 * width))
    lane = jnp.arange(2 * width)
    is_own = lane[:, None] == lane[None, :]
    if plan.is_group_seen:
        is_own |= (lane[:, None] >= width) & (lane[None, :] >= width)
    if plan.is_fresh_causal:
        among &= (lane[None, :] <= lane[:, None])[None]
    among |= is_own[None] & is_lane[:, None]
    stop = jnp.broadcast_to(state.num_cached[:, None], is_lane.shape)
    fresh = jnp.take_along_axis(state.tokens, real, 1)
    masks = jnp.full_like(asked.positions, plan.mask_id)
    query = Query(
        tokens=jnp.concatenate([fresh, masks], 1),
        positions=jnp.concatenate([real, asked.positions], 1),
        # A group's positions rise, so those inside the row are its first lanes.
        slots=SlotRun(state.num_cached, is_key),
        visible=Visibility(jnp.zeros_like(stop), stop, among=among),
    )
    return query, is_lane.sum(1, dtype=jnp.int32)


def committed(state, asked: Asked, prediction) -> tuple[Any, Array]:
    """The state with the group decided, and which of its lanes were, bool [B, G].

    A row of which a statistic is no number stands still.
    """
    is_number = jnp.isfinite(prediction.log_prob) | ~asked.valid
    failed = state.failed | ~is_number.all(1)
    chosen = asked.valid & ~failed[:, None]
    nth = jnp.arange(state.tokens.shape[0])[:, None]
    where = jnp.where(chosen, asked.positions, state.tokens.shape[1])
    new = state._replace(
        tokens=state.tokens.at[nth, where].set(prediction.token, mode="drop"),
        log_probs=state.log_probs.at[nth, where].set(
            prediction.log_prob.astype(jnp.float32), mode="drop"
        ),
        decided=state.decided.at[nth, where].set(True, mode="drop"),
        failed=failed,
    )
    return new, chosen


def predict(plan: Plan, params, keys, state: FrontierState, asked: Asked, hidden):
    """Statistics of the group; noise is named by the position predicted."""
    places = functools.partial(rng.noise, keys, rng.TARGET, asked.positions)
    wants, head = ("token", "log_prob"), plan.model.head(params["model"])
    if not plan.lenses:
        return vocab_head.statistics(head, hidden, wants, plan.sampling, places)
    shape = asked.positions.shape

    def spread(leaf):
        return jnp.broadcast_to(leaf[:, None], (*shape, *leaf.shape[1:]))

    views = View(
        tokens=spread(state.tokens),
        known=spread(state.decided),
        position=asked.positions,
        prompt_end=spread(state.prompt_end),
    )
    return vocab_head.seen_through(
        plan.lenses, params, views, head, hidden, wants, plan.sampling, places
    )


def done(plan, state) -> Array:
    """bool [B]."""
    return state.failed | rows.is_complete(_progress(state), plan.model.eos_ids)


def output(plan, state) -> Generation:
    """The result so far."""
    return rows.generation(
        _progress(state), state.log_probs, state.failed, plan.model.eos_ids
    )


def _progress(state) -> rows.Canvas:
    place = jnp.arange(state.tokens.shape[1])[None]
    is_new = place >= state.prompt_end[:, None]
    return rows.Canvas(
        state.tokens,
        state.decided & is_new,
        ~state.decided & is_new & (place < state.end[:, None]),
        state.prompt_end,
        state.end,
    )


def counted(plan, state) -> Array:
    """Tokens decided that count, int32 [B]."""
    return rows.num_counted(_progress(state), plan.model.eos_ids)


def groups_of(rank: np.ndarray) -> np.ndarray:
    """int32 [K, G] positions of each group in turn; -1 pads."""
    members = [np.flatnonzero(rank == value) for value in np.unique(rank)]
    table = np.full((len(members), max(map(len, members))), -1, np.int32)
    for row, group in zip(table, members):
        row[: len(group)] = group
    return table
