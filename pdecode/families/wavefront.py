"""The wavefront family: a causal model read at several places of a grid at once.

A position is predicted from the one before it, so a row of an image can begin only when
the row above has ended, unless a stand-in is fed in place of its last token. What is
fed in each step is known beforehand, from the ranks of the positions: tables made once.
A token has the slot of its position; a slot that nothing was fed to is seen by nobody,
and a stand-in's is written over by its true token as soon as that is drawn.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import Cache, Decoder, Model, Prompt, Query, Sampling, Visibility
from pdecode.families import frontier, rows
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import orders
from pdecode.sampling import without_mask


class WavefrontState(NamedTuple):
    """Carry of the loop."""

    tokens: Array  # int32 [B, L]
    log_probs: Array  # float32 [B, L]
    decided: Array  # bool [B, L]  prompt and committed positions
    prompt_end: Array  # int32 [B]
    end: Array  # int32 [B]
    group: Array  # int32 [B]  next group of the order
    failed: Array  # bool [B]  a statistic was no number: the row stands still
    cache: Cache


class Tables(NamedTuple):
    """What each of K steps feeds; places count from the end of the prompt.

    The first G of M lanes predict the group's members, from the place before each; the
    others only store what was drawn.
    """

    groups: np.ndarray  # int32 [K, G]  members; -1 pads
    place: np.ndarray  # int32 [K, M]  where a lane stands, -1 the prompt's last token
    source: np.ndarray  # int32 [K, M]  the place whose token is fed there
    is_lane: np.ndarray  # bool [K, M]
    written: np.ndarray  # bool [K, 1 + N]  places fed so far, the one at -1 first


class Plan(NamedTuple):
    """What a wavefront decode is made of, checked once."""

    model: Model
    tables: Tables
    sampling: Sampling
    max_new_tokens: int
    # (params, hidden [B, M, E], turn int32 [B]) -> [B, G, E], what each member is
    # predicted from; None: the first G lanes.
    read: Callable[..., Array] | None = None
    is_causal: bool = True  # a lane sees what stands before it; else all that was fed


def wavefront(
    model: Model,
    rank: np.ndarray,
    stand_in: np.ndarray,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> Decoder:
    """A Decoder that draws positions of equal rank (int [N]) in one call.

    `stand_in[t]` (int [N]) is the place whose token is fed before t where the one there
    is not drawn yet; below 0 it lies in the prompt. In raster order it is the model's
    own sampling, token for token. Raises ValueError for a model that is not causal, and
    for a stand-in that is not drawn in time.
    """
    rank, stand_in = np.asarray(rank), np.asarray(stand_in)
    if rank.shape != (max_new_tokens,) or stand_in.shape != rank.shape:
        raise ValueError(
            f"rank and stand_in have shapes {rank.shape} and {stand_in.shape}, but "
            f"max_new_tokens={max_new_tokens}: give one of each to every position"
        )
    made = of_tables(
        model, tables(rank, stand_in), max_new_tokens=max_new_tokens, sampling=sampling
    )
    is_raster = (np.diff(rank) > 0).all()
    return made._replace(guarantee="lossless" if is_raster else "lossy")


def of_tables(
    model: Model,
    tables: Tables,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    read: Callable[..., Array] | None = None,
    is_causal: bool = True,
) -> Decoder:
    """A Decoder of tables made elsewhere; `read` and `is_causal` as in `Plan`."""
    if model.predicts != "next" or model.attention != "causal":
        raise ValueError(
            f"the wavefront family reads a causal model, but {model.name} has "
            f"predicts={model.predicts!r} and {model.attention} attention: use the "
            "frontier or the masked family"
        )
    own = without_mask(model, sampling)
    plan = Plan(model, tables, own, max_new_tokens, read, is_causal)
    return Decoder(
        init=functools.partial(init, plan),
        step=functools.partial(step, plan),
        done=functools.partial(frontier.done, plan),
        output=functools.partial(frontier.output, plan),
        max_steps=len(plan.tables.groups),
    )


def tables(rank: np.ndarray, stand_in: np.ndarray) -> Tables:
    """What each step feeds, from the ranks; ValueError as in `wavefront`."""
    groups = frontier.groups_of(rank)
    steps, fresh = [], []
    for members in groups:
        members = members[members >= 0]
        lanes = []
        for place in members:
            before = place - 1
            is_drawn = before < 0 or rank[before] < rank[place]
            source = before if is_drawn else stand_in[place]
            if source >= 0 and rank[source] >= rank[place]:
                raise ValueError(
                    f"stand_in[{place}]={source} is drawn no earlier than {place}: "
                    "give a place of lower rank, or one in the prompt"
                )
            lanes.append((before, source))
        steps.append((lanes, [(p, p) for p in fresh if p + 1 not in members]))
        fresh = members
    width = groups.shape[1]
    most = width + max(len(stored) for _, stored in steps)
    place = np.full((len(steps), most), -1, np.int32)
    source, is_lane = place.copy(), np.zeros(place.shape, bool)
    written = np.zeros((len(steps), 1 + len(rank)), bool)
    for step, (lanes, stored) in enumerate(steps):
        for start, some in ((0, lanes), (width, stored)):
            here = slice(start, start + len(some))
            is_lane[step, here] = True
            if some:
                place[step, here], source[step, here] = zip(*some)
        written[step:, 1 + place[step, is_lane[step]]] = True
    return Tables(groups, place, source, is_lane, written)


def diagonals(total: int, row_length: int) -> tuple[Tables, np.ndarray, np.ndarray]:
    """Tables of the calls, and the lanes of each member's neighbours, int32 [K, G].

    A call feeds the diagonal before, the first one the prompt's last token, which is
    both neighbours of the corner; -1 is no neighbour.
    """
    groups = frontier.groups_of(orders.of("diagonal", total, row_length))
    fed = np.full_like(groups, -1)
    fed[1:] = groups[:-1]
    is_lane = fed >= 0
    is_lane[0, 0] = True
    written = np.zeros((len(groups), 1 + total), bool)
    left, above = np.full_like(groups, -1), np.full_like(groups, -1)
    for step, (members, lanes) in enumerate(zip(groups, fed)):
        written[step:, 1 + lanes[is_lane[step]]] = True
        lane_of = {int(place): lane for lane, place in enumerate(lanes) if place >= 0}
        for index, place in enumerate(members):
            if place == 0:
                left[step, index] = above[step, index] = 0
            elif place > 0:
                before = place - 1 if place % row_length else -1
                left[step, index] = lane_of.get(before, -1)
                above[step, index] = lane_of.get(place - row_length, -1)
    return Tables(groups, fed, fed, is_lane, written), left, above


def init(plan: Plan, params, keys, prompt: Prompt):
    """The prompt but its last token in the cache."""
    del keys
    rows.no_holes(prompt, "the wavefront family")
    laid = rows.layout(prompt, plan.max_new_tokens, plan.model)
    batch, length = laid.tokens.shape
    cache = plan.model.init_cache(prompt, caches.num_slots(length))
    _, cache = prompts.prefill(plan.model, params["model"], prompt, cache, drop=1)
    zero = jnp.zeros(batch, jnp.int32)
    state = WavefrontState(
        tokens=laid.tokens,
        log_probs=jnp.zeros((batch, length), jnp.float32),
        decided=laid.is_text,
        prompt_end=prompt.lengths,
        end=laid.end,
        group=zero,
        failed=zero == 1,
        cache=cache,
    )
    return state, rows.prefill_info(plan.model, prompt, drop=1)


def step(plan: Plan, params, keys, state: WavefrontState):
    """Feed what was drawn and what stands in for what was not; draw the next group."""
    active = ~frontier.done(plan, state)
    asked, query, num_lanes = front(plan, state, active)
    output, cache = plan.model.apply(params["model"], query, state.cache)
    hidden = output.hidden[:, : asked.positions.shape[1]]
    if plan.read is not None:
        hidden = plan.read(params, output.hidden, state.group)
    places = functools.partial(rng.noise, keys, rng.TARGET, asked.positions)
    prediction = vocab_head.statistics(
        plan.model.head(params["model"]),
        hidden,
        ("token", "log_prob"),
        plan.sampling,
        places,
    )
    new, _ = frontier.committed(state, asked, prediction)
    new = new._replace(group=state.group + active, cache=cache)
    # A group that lies past the row's end asks nothing: no call for that row.
    per_call = jnp.where(asked.valid.any(1), plan.model.num_calls, 0)
    return new, rows.info(
        per_call,
        num_calls=per_call,
        num_committed=frontier.counted(plan, new) - frontier.counted(plan, state),
        num_proposed=asked.valid.sum(1, dtype=jnp.int32),
        num_query_tokens=per_call * num_lanes,
        num_query_tokens_computed=per_call * query.tokens.shape[1],
        num_dispatches=jnp.ones((), jnp.int32),
    )


def front(plan: Plan, state: WavefrontState, active: Array):
    """The group asked for, the call, and its lanes a row asks for, int32 [B]."""
    table, length = plan.tables, state.tokens.shape[1]
    turn = jnp.minimum(state.group, len(table.groups) - 1)
    first = state.prompt_end[:, None]
    member = jnp.asarray(table.groups)[turn]
    inside = (member >= 0) & (first + member < state.end[:, None]) & active[:, None]
    asked = frontier.Asked(jnp.where(inside, first + member, 0), inside)

    position = first + jnp.asarray(table.place)[turn]
    # Nobody that sees only what is before it sees what is last in its row.
    is_lane = jnp.asarray(table.is_lane)[turn] & active[:, None]
    is_lane &= position < state.end[:, None] - plan.is_causal
    source = jnp.clip(first + jnp.asarray(table.source)[turn], 0, length - 1)
    tokens = jnp.take_along_axis(state.tokens, source, 1)
    slot = jnp.arange(caches.num_slots(length))[None]
    place = slot - first
    fed = jnp.asarray(table.written)[turn]
    index = jnp.clip(place + 1, 0, fed.shape[1] - 1)
    inside = slot < state.end[:, None] - plan.is_causal
    written = (place < -1) | (jnp.take_along_axis(fed, index, 1) & inside)
    start = jnp.zeros_like(position)
    ends = jnp.broadcast_to(state.end[:, None], position.shape)
    stop = position + 1 if plan.is_causal else ends
    query = Query(
        tokens=jnp.where(is_lane, tokens, 0),
        positions=jnp.where(is_lane, position, 0),
        slots=jnp.where(is_lane, position, caches.UNSTORED),
        visible=Visibility(start, jnp.where(is_lane, stop, 0), written=written),
    )
    return asked, query, is_lane.sum(1, dtype=jnp.int32)
