"""Jacobi iteration as a drafter that remembers its last iterate.

Each round's call evaluates the guesses behind the root. What the family does not commit
is carried to the next round through a transport: a map that turns a guess drawn from q
into one drawn from p, the target's law in the present context. If every guess is
distributed as its declared q given what lies before it, the output law is the target's
own, whichever transports are used (SJD, Teng et al., 2024, arXiv:2410.01699; MC-SJD,
2025, arXiv:2510.24211).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Draft, Drafter, Model, Prefix, Round, Sampling
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import accept
from pdecode.sampling import categorical

TRANSPORTS = ("argmax", "independent", "maximal", "gumbel")

# Where a guess came from, so that its q can be told: a constant, the uniform law, or
# the law of the hidden state kept beside it. q over V itself is never carried.
POINT, UNIFORM, HIDDEN = range(3)


class Guesses(NamedTuple):
    """The iterate behind the root."""

    tokens: Array  # int32 [B, W]
    origin: Array  # int32 [B, W]  POINT, UNIFORM or HIDDEN
    hidden: Array  # [B, W, E]  what proposed it, where origin is HIDDEN


def iterate(
    model: Model,
    window: int,
    sampling: Sampling,
    *,
    transport: str = "argmax",
    start: str = "uniform",
    block_length: int | None = None,
) -> Drafter:
    """Drafter of `window` guesses.

    Transports: "argmax" takes the target's own token under position-keyed noise and is
    meant for `accept.match` (it keeps no q); "independent" redraws from p; "maximal"
    keeps a guess with probability min(1, p / q), else draws norm((p - q)+); "gumbel"
    takes the argmax under noise frozen at each position. `start` fills entering slots:
    "uniform" at random, or "repeat" with the root's token. With `block_length` guesses
    stop at the end of the block that the next position lies in, counted from the end of
    the prompt, so the window shrinks until the block is done.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"{transport=} must be one of {TRANSPORTS}")
    if start not in ("uniform", "repeat"):
        raise ValueError(f"{start=} must be 'uniform' or 'repeat'")
    has_q = transport != "argmax"
    allowed = (
        jnp.ones(model.vocab_size, bool).at[jnp.array(sampling.banned, int)].set(False)
    )

    def init(params, keys, prompt, prefix: Prefix, output):
        del prompt, output
        width = _target(params).shape[1] if has_q else 0
        tokens, origin = _enter(keys, prefix.length - 1, prefix)
        batch = prefix.length.shape[0]
        return Guesses(tokens, origin, jnp.zeros((batch, window, width)))

    def _target(params):
        return model.head(params).weight

    def _enter(keys, root: Array, prefix: Prefix):
        """Fresh guesses [B, W] behind `root` and their origin."""
        position = root[:, None] + 1 + jnp.arange(window)[None]
        if start == "uniform":
            places = rng.noise(keys, rng.DRAFT, position, round=root)
            flat = jnp.broadcast_to(
                allowed.astype(jnp.float32), (*position.shape, model.vocab_size)
            )
            tokens = categorical(flat, places)
            return tokens, jnp.full_like(tokens, UNIFORM)
        last = jnp.take_along_axis(prefix.tokens, root[:, None], 1)
        return jnp.broadcast_to(last, position.shape), jnp.full_like(position, POINT)

    def propose(params, keys, state: Guesses, prefix: Prefix):
        del keys
        tokens = state.tokens
        if block_length is not None:
            place = prefix.length[:, None] - prefix.prompt_end[:, None]
            block = (place + jnp.arange(window)[None]) // block_length
            tokens = jnp.where(block == place // block_length, tokens, -1)
        q = _q(params, state) if has_q else None
        if q is not None:
            q = jnp.where(tokens[..., None] >= 0, q, 0)
        parents = jnp.broadcast_to(jnp.arange(-1, window - 1), tokens.shape)
        return Draft(tokens=tokens, parents=parents, q=q), state

    def _q(params, state: Guesses) -> Array:
        laws = vocab_head.statistics(
            model.head(params), state.hidden, ("probs",), sampling
        ).probs
        point = jnp.arange(model.vocab_size)[None, None] == state.tokens[..., None]
        origin = state.origin[..., None]
        q = jnp.where(origin == UNIFORM, (allowed / allowed.sum())[None, None], laws)
        return jnp.where(origin == POINT, point.astype(q.dtype), q)

    def observe(params, keys, state: Guesses, round: Round):
        del params
        root = round.prefix.length - 1
        moved = _transport(keys, root, round)  # [B, W + 1], one a lane
        # Old node n stands one place behind lane n. After k accepted tokens and the
        # next one, new slot j is old node k + 1 + j; node W is lane W's own prediction.
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
        fresh, origin = _enter(keys, root + round.num_accepted + 1, after)
        hidden = state.hidden
        if has_q:
            hidden = jnp.take_along_axis(round.output.hidden, lane[..., None], 1)
        return Guesses(
            tokens=jnp.where(carried, jnp.take_along_axis(moved, lane, 1), fresh),
            origin=jnp.where(carried, HIDDEN, origin),
            hidden=hidden.astype(state.hidden.dtype),
        )

    def _transport(keys, root: Array, round: Round) -> Array:
        """What each lane now proposes for the position behind it, int32 [B, 1 + W]."""
        if transport in ("argmax", "gumbel"):
            return round.prediction.token
        assert round.draft.q is not None  # these transports were given one
        p = round.prediction.probs
        position = root[:, None] + 1 + jnp.arange(window + 1)[None]
        places = rng.noise(keys, rng.TRANSPORT, position, round=root)
        if transport == "independent":
            return categorical(p, places)
        q = jnp.concatenate([round.draft.q, jnp.zeros_like(p[:, :1])], 1)
        token = jnp.pad(jnp.maximum(round.draft.tokens, 0), ((0, 0), (0, 1)))
        p_token = jnp.take_along_axis(p, token[..., None], 2)[..., 0]
        q_token = jnp.take_along_axis(q, token[..., None], 2)[..., 0]
        split = rng.noise(
            keys, rng.TRANSPORT, position, round=root, index=jnp.ones_like(position)
        )
        kept = rng.uniform(split) * q_token < p_token
        kept &= q_token > 0
        redrawn = categorical(accept.normalised(jnp.maximum(p - q, 0), p), places)
        return jnp.where(kept, token, redrawn)

    wants = {"argmax": ("token",), "gumbel": ("token", "probs")}
    return Drafter(
        window,
        window,
        init,
        propose,
        observe,
        wants=wants.get(transport, ("probs",)),
    )
