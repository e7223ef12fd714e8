"""Jacobi iteration as a drafter that remembers its last iterate.

Each round's call evaluates the guesses behind the root. What the family does not commit
is carried to the next round through a transport (`drafters.guesses`).
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, Model, Prefix, Round, Sampling
from pdecode.drafters.guesses import (
    HIDDEN,
    POINT,
    UNIFORM,
    Entry,
    Guesses,
    Opening,
    Transport,
    argmax,
    uniform,
)
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["Plan", "iterate", "logged", "old_nodes", "predicted"]


class Plan(NamedTuple):
    """What the drafter is made of."""

    model: Model
    window: int
    sampling: Sampling
    transport: Transport
    entry: Entry
    block_length: int | None
    start_ids: tuple[int, int] | None


def iterate(
    model: Model,
    window: int,
    sampling: Sampling,
    *,
    transport: Transport | None = None,
    entry: Entry | None = None,
    block_length: int | None = None,
    start_ids: tuple[int, int] | None = None,
) -> Drafter:
    """Drafter of `window` guesses, moved by `transport` and begun by `entry`.

    They default to `argmax()` and `uniform()`. With `block_length` guesses stop at the
    end of the block that the next position lies in, counted from the end of the prompt,
    so the window shrinks until the block is done. `start_ids`, first and one past the
    last, are what `uniform()` draws from, such as the part of a vocabulary that is an
    image's. Raises ValueError for an entry that draws from the target's law under a
    transport without q, and for a part that is none.
    """
    plan = Plan(
        model,
        window,
        without_mask(model, sampling),
        argmax() if transport is None else transport,
        uniform() if entry is None else entry,
        block_length,
        start_ids,
    )
    if start_ids is not None:
        every = set(range(model.vocab_size)) - set(plan.sampling.banned)
        if not every & set(range(*start_ids)) or max(start_ids) > model.vocab_size:
            raise ValueError(f"{start_ids=} must hold ids of {model.vocab_size}")
    if plan.entry.origin == HIDDEN and not plan.transport.has_q:
        raise ValueError("this entry draws from p: take a transport that tells its q")
    return Drafter(
        num_nodes=window,
        max_depth=window,
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
        wants=plan.transport.wants,
        is_of_target=plan.transport.has_q,
    )


def logged(drafter: Drafter) -> Drafter:
    """An `iterate` whose state is (Guesses, their raw log-probabilities [B, W])."""
    window = drafter.num_nodes

    def init(params, keys, prompt, prefix, output):
        guesses = drafter.init(params, keys, prompt, prefix, output)
        return guesses, jnp.zeros(guesses.tokens.shape)

    def propose(params, keys, state, prefix):
        draft, guesses = drafter.propose(params, keys, state[0], prefix)
        return draft, (guesses, state[1])

    def observe(params, keys, state, round):
        guesses = drafter.observe(params, keys, state[0], round)
        log_probs = round.prediction.log_prob
        lane = jnp.minimum(old_nodes(round, window), window)
        return guesses, jnp.take_along_axis(log_probs, lane, 1)

    return drafter._replace(
        init=init,
        propose=propose,
        observe=observe,
        wants=tuple(dict.fromkeys((*drafter.wants, "log_prob"))),
    )


def predicted(state: tuple[Guesses, Array]) -> tuple[Array, Array, Array]:
    """Guesses, log-probabilities and how many a call predicted, of a `logged` state."""
    guesses, log_probs = state
    count = (guesses.origin == HIDDEN).sum(1, dtype=jnp.int32)
    return guesses.tokens, log_probs, count


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Guesses:
    del prompt, output
    has_q = plan.transport.has_q
    width = plan.model.head(params["model"]).weight.shape[1] if has_q else 0
    positions = _positions(plan, prefix)
    none = jnp.zeros_like(positions)
    opening = Opening(prefix, positions, none, none > 0, _allowed(plan), None)
    # Without a round there is no law to have drawn from.
    origin = UNIFORM if plan.entry.origin == HIDDEN else plan.entry.origin
    return Guesses(
        plan.entry.apply(keys, opening),
        jnp.full_like(positions, origin),
        jnp.zeros((*positions.shape, width)),
    )


def _propose(plan: Plan, params, keys, state: Guesses, prefix: Prefix):
    del keys
    tokens, window = state.tokens, plan.window
    if plan.block_length is not None:
        place = prefix.length[:, None] - prefix.prompt_end[:, None]
        block = (place + jnp.arange(window)[None]) // plan.block_length
        tokens = jnp.where(block == place // plan.block_length, tokens, -1)
    q = None
    if plan.transport.has_q:
        q = jnp.where(tokens[..., None] >= 0, _q(plan, params["model"], state), 0)
    parents = jnp.broadcast_to(jnp.arange(-1, window - 1), tokens.shape)
    return Draft(tokens=tokens, parents=parents, q=q), state


def _observe(plan: Plan, params, keys, state: Guesses, round: Round) -> Guesses:
    del params
    root, window = round.prefix.length - 1, plan.window
    moved = plan.transport.apply(keys, round)  # [B, W + 1], one a lane
    node = old_nodes(round, window)
    lane = jnp.minimum(node, window)
    is_real = jnp.concatenate(
        [round.draft.tokens >= 0, round.draft.tokens[:, -1:] >= 0], 1
    )
    carried = (node <= window) & jnp.take_along_axis(is_real, lane, 1)
    after = round.prefix._replace(
        tokens=_appended(round), length=root + round.num_accepted + 2
    )
    guesses = jnp.take_along_axis(moved, lane, 1)
    has_q = plan.transport.has_q
    last = round.prediction.probs[:, -1] if has_q else None
    opening = Opening(
        after, _positions(plan, after), guesses, carried, _allowed(plan), last
    )
    hidden = state.hidden
    if has_q:
        source = jnp.where(carried, lane, window)  # of fresh ones: the last lane
        hidden = jnp.take_along_axis(round.output.hidden, source[..., None], 1)
    return Guesses(
        tokens=jnp.where(carried, guesses, plan.entry.apply(keys, opening)),
        origin=jnp.where(carried, HIDDEN, plan.entry.origin),
        hidden=hidden.astype(state.hidden.dtype),
    )


def old_nodes(round: Round, window: int) -> Array:
    """Old nodes int32 [B, W] that become the guesses of the new window.

    Old node n stands one place behind lane n. After k accepted tokens and the next one,
    new slot j is old node k + 1 + j; node W is lane W's own prediction:
    k = 1, W = 3   nodes 0 1 2 (3)   slots: node 2, node 3, fresh
    """
    return round.num_accepted[:, None] + 1 + jnp.arange(window)[None]


def _appended(round: Round) -> Array:
    """The prefix's tokens [B, L] with the accepted path and the next token."""
    prefix, tokens = round.prefix, round.draft.tokens
    nth = jnp.arange(prefix.tokens.shape[1])[None] - prefix.length[:, None]
    node = jnp.clip(nth, 0, tokens.shape[1] - 1)
    accepted = (nth >= 0) & (nth < round.num_accepted[:, None])
    text = jnp.where(accepted, jnp.take_along_axis(tokens, node, 1), prefix.tokens)
    is_next = nth == round.num_accepted[:, None]
    return jnp.where(is_next, round.next_token[:, None], text)


def _positions(plan: Plan, prefix: Prefix) -> Array:
    """Positions int32 [B, W] of the window behind `prefix`."""
    return prefix.length[:, None] + jnp.arange(plan.window, dtype=jnp.int32)[None]


def _q(plan: Plan, params, state: Guesses) -> Array:
    """The law [B, W, V] that each guess was drawn from."""
    laws = vocab_head.statistics(
        plan.model.head(params), state.hidden, ("probs",), plan.sampling
    ).probs
    allowed = _allowed(plan)
    point = jnp.arange(allowed.shape[0])[None, None] == state.tokens[..., None]
    origin = state.origin[..., None]
    q = jnp.where(origin == UNIFORM, (allowed / allowed.sum())[None, None], laws)
    return jnp.where(origin == POINT, point.astype(q.dtype), q)


def _allowed(plan: Plan) -> Array:
    every = jnp.ones(plan.model.vocab_size, bool)
    every = every.at[jnp.array(plan.sampling.banned, int)].set(False)
    if plan.start_ids is None:
        return every
    ids, (first, stop) = jnp.arange(plan.model.vocab_size), plan.start_ids
    return every & (ids >= first) & (ids < stop)
