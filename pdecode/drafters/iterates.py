"""Jacobi iteration as a drafter that remembers its last iterate.

Each round's call evaluates the guesses behind the root. What the family does not commit
is carried to the next round through a transport: a map that turns a guess drawn from q
into one drawn from p, the target's law in the present context. If every guess is
distributed as its declared q given what lies before it, the output law is the target's
own, whichever transports are used (SJD, Teng et al., 2024, arXiv:2410.01699; MC-SJD,
2025, arXiv:2510.24211).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Draft, Drafter, Model, Prefix, Round, Sampling
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import accept
from pdecode.sampling import categorical, without_mask

# Where a guess came from, so that its q can be told: a constant, the uniform law, or
# the law of the hidden state kept beside it. q over V itself is never carried.
POINT, UNIFORM, HIDDEN = range(3)


class Guesses(NamedTuple):
    """The iterate behind the root."""

    tokens: Array  # int32 [B, W]
    origin: Array  # int32 [B, W]  POINT, UNIFORM or HIDDEN
    hidden: Array  # [B, W, E]  what proposed it, where origin is HIDDEN


class Transport(NamedTuple):
    """What each lane proposes for the position behind it: (keys, round) -> [B, 1 + W].

    With `has_q` its guesses are draws from p, and their q is told.
    """

    apply: Callable[[Array, Round], Array]
    wants: tuple[str, ...]
    has_q: bool


class Entry(NamedTuple):
    """Fresh guesses: (keys, root [B], positions [B, W], prefix, allowed [V]) -> [B, W].

    `prefix` holds the root; `allowed` are the ids that may be drawn.
    """

    apply: Callable[[Array, Array, Array, Prefix, Array], Array]
    origin: int  # POINT or UNIFORM


class Plan(NamedTuple):
    """What the drafter is made of."""

    model: Model
    window: int
    sampling: Sampling
    transport: Transport
    entry: Entry
    block_length: int | None


def argmax() -> Transport:
    """The target's own token under position-keyed noise; for `accept.match`, no q."""
    return Transport(lambda keys, round: round.prediction.token, ("token",), False)


def gumbel() -> Transport:
    """The argmax under noise frozen at each position."""
    return Transport(
        lambda keys, round: round.prediction.token, ("token", "probs"), True
    )


def independent() -> Transport:
    """A new draw from p."""

    def apply(keys: Array, round: Round) -> Array:
        p, places = round.prediction.probs, _places(keys, round)
        return categorical(p, places)

    return Transport(apply, ("probs",), True)


def maximal() -> Transport:
    """A guess is kept with probability min(1, p / q), else norm((p - q)+) is drawn."""

    def apply(keys: Array, round: Round) -> Array:
        assert round.draft.q is not None  # a transport with q is given one
        p = round.prediction.probs
        q = jnp.concatenate([round.draft.q, jnp.zeros_like(p[:, :1])], 1)
        token = jnp.pad(jnp.maximum(round.draft.tokens, 0), ((0, 0), (0, 1)))
        p_token = jnp.take_along_axis(p, token[..., None], 2)[..., 0]
        q_token = jnp.take_along_axis(q, token[..., None], 2)[..., 0]
        split = _places(keys, round, index=jnp.ones_like(token))
        kept = (rng.uniform(split) * q_token < p_token) & (q_token > 0)
        rest = accept.normalised(jnp.maximum(p - q, 0), p)
        return jnp.where(kept, token, categorical(rest, _places(keys, round)))

    return Transport(apply, ("probs",), True)


def repeated() -> Entry:
    """The root's token everywhere."""

    def apply(keys, root: Array, positions: Array, prefix: Prefix, allowed) -> Array:
        del keys, allowed
        last = jnp.take_along_axis(prefix.tokens, root[:, None], 1)
        return jnp.broadcast_to(last, positions.shape)

    return Entry(apply, POINT)


def uniform() -> Entry:
    """A random id at every position."""

    def apply(keys, root: Array, positions: Array, prefix, allowed: Array) -> Array:
        del prefix
        places = rng.noise(keys, rng.DRAFT, positions, round=root)
        flat = jnp.broadcast_to(
            allowed.astype(jnp.float32), (*positions.shape, allowed.shape[0])
        )
        return categorical(flat, places)

    return Entry(apply, UNIFORM)


def iterate(
    model: Model,
    window: int,
    sampling: Sampling,
    *,
    transport: Transport | None = None,
    entry: Entry | None = None,
    block_length: int | None = None,
) -> Drafter:
    """Drafter of `window` guesses, moved by `transport` and begun by `entry`.

    They default to `argmax()` and `uniform()`. With `block_length` guesses stop at the
    end of the block that the next position lies in, counted from the end of the prompt,
    so the window shrinks until the block is done.
    """
    plan = Plan(
        model,
        window,
        without_mask(model, sampling),
        argmax() if transport is None else transport,
        uniform() if entry is None else entry,
        block_length,
    )
    return Drafter(
        num_nodes=window,
        max_depth=window,
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
        wants=plan.transport.wants,
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Guesses:
    del prompt, output
    has_q = plan.transport.has_q
    width = plan.model.head(params["model"]).weight.shape[1] if has_q else 0
    tokens, origin = _enter(plan, keys, prefix.length - 1, prefix)
    return Guesses(tokens, origin, jnp.zeros((*tokens.shape, width)))


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
    # Old node n stands one place behind lane n. After k accepted tokens and the next
    # one, new slot j is old node k + 1 + j; node W is lane W's own prediction.
    #   k = 1, W = 3   nodes 0 1 2 (3)   slots: node 2, node 3, fresh
    node = round.num_accepted[:, None] + 1 + jnp.arange(window)[None]
    lane = jnp.minimum(node, window)
    is_real = jnp.concatenate(
        [round.draft.tokens >= 0, round.draft.tokens[:, -1:] >= 0], 1
    )
    carried = (node <= window) & jnp.take_along_axis(is_real, lane, 1)
    after = round.prefix._replace(
        tokens=round.prefix.tokens.at[
            jnp.arange(root.shape[0]), root + round.num_accepted + 1
        ].set(round.next_token, mode="drop")
    )
    fresh, origin = _enter(plan, keys, root + round.num_accepted + 1, after)
    hidden = state.hidden
    if plan.transport.has_q:
        hidden = jnp.take_along_axis(round.output.hidden, lane[..., None], 1)
    return Guesses(
        tokens=jnp.where(carried, jnp.take_along_axis(moved, lane, 1), fresh),
        origin=jnp.where(carried, HIDDEN, origin),
        hidden=hidden.astype(state.hidden.dtype),
    )


def _enter(plan: Plan, keys, root: Array, prefix: Prefix) -> tuple[Array, Array]:
    """Fresh guesses behind `root` and their origin, int32 [B, W]."""
    positions = root[:, None] + 1 + jnp.arange(plan.window)[None]
    tokens = plan.entry.apply(keys, root, positions, prefix, _allowed(plan))
    return tokens, jnp.full_like(positions, plan.entry.origin)


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
    return every.at[jnp.array(plan.sampling.banned, int)].set(False)


def _places(keys: Array, round: Round, index: Array | None = None) -> Array:
    """Keys [B, 1 + W] of the positions that the lanes predict."""
    root = round.prefix.length - 1
    lanes = jnp.arange(round.draft.tokens.shape[1] + 1)[None]
    position = root[:, None] + 1 + lanes
    return rng.noise(keys, rng.TRANSPORT, position, round=root, index=index)
