"""What a Jacobi iterate is made of: guesses, how they move, how they begin.

A transport turns a guess drawn from q into one drawn from p, the target's law in the
present context; an entry begins what no call has answered yet. Guesses that are
distributed as the q they tell keep the output's law the target's own, whichever are
used (SJD, Teng et al., 2024, arXiv:2410.01699; MC-SJD, 2025, arXiv:2510.24211).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Prefix, Round
from pdecode.rules import accept
from pdecode.sampling import categorical

__all__ = [
    "Entry",
    "Guesses",
    "Opening",
    "Transport",
    "argmax",
    "copied",
    "gumbel",
    "independent",
    "maximal",
    "neighbour",
    "of_text",
    "repeated",
    "uniform",
]

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


class Opening(NamedTuple):
    """What an entry may read: the new window, with guesses that were carried into it.

    A fresh guess may depend on what stands before it and on nothing else.
    """

    prefix: Prefix  # its last token is the root
    positions: Array  # int32 [B, W]
    guesses: Array  # int32 [B, W]  where `carried`
    carried: Array  # bool [B, W]  a run from the first slot
    allowed: Array  # bool [V]  ids that may be drawn
    last: Array | None  # [B, V]  p behind the last guess of the round; None: no round


class Entry(NamedTuple):
    """Fresh guesses int32 [B, W] for an Opening, given keys [B]; carried are ignored.

    With origin HIDDEN they are drawn from `Opening.last`.
    """

    apply: Callable[[Array, Opening], Array]
    origin: int  # POINT, UNIFORM or HIDDEN


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

    def apply(keys: Array, opening: Opening) -> Array:
        del keys
        root = opening.prefix.length[:, None] - 1
        last = jnp.take_along_axis(opening.prefix.tokens, root, 1)
        return jnp.broadcast_to(last, opening.positions.shape)

    return Entry(apply, POINT)


def uniform() -> Entry:
    """A random id at every position."""

    def apply(keys: Array, opening: Opening) -> Array:
        flat = opening.allowed.astype(jnp.float32)
        flat = jnp.broadcast_to(flat, (*opening.positions.shape, flat.shape[0]))
        return categorical(flat, _fresh_places(keys, opening))

    return Entry(apply, UNIFORM)


def of_text() -> Entry:
    """A random token of the text so far at every position (CLLM)."""

    def apply(keys: Array, opening: Opening) -> Array:
        share = rng.uniform(_fresh_places(keys, opening))
        place = (share * opening.prefix.length[:, None]).astype(jnp.int32)
        return jnp.take_along_axis(opening.prefix.tokens, place, 1)

    return Entry(apply, POINT)


def neighbour() -> Entry:
    """Draws from the law behind the last guess; before there is one, as `uniform`."""

    def apply(keys: Array, opening: Opening) -> Array:
        if opening.last is None:
            return uniform().apply(keys, opening)
        shape = (*opening.positions.shape, opening.last.shape[-1])
        laws = jnp.broadcast_to(opening.last[:, None], shape)
        return categorical(laws, _fresh_places(keys, opening))

    return Entry(apply, HIDDEN)


def copied(row_length: int, *, is_above: bool) -> Entry:
    """The token to the left, or above, in an image of `row_length` tokens a row.

    Rows are counted from the end of the prompt. In the first row what is above is the
    token to the left, and in the first column what is left is the token above.
    """

    def apply(keys: Array, opening: Opening) -> Array:
        del keys
        prefix, positions = opening.prefix, opening.positions
        place = positions - prefix.prompt_end[:, None]
        is_up = (place >= row_length) & (is_above | (place % row_length == 0))
        source = jnp.where(is_up, positions - row_length, positions - 1)
        # Follow copies of copies to what is committed or carried; each jump doubles
        # the distance. Slots of the window, below zero in the text before it.
        slot = source - prefix.length[:, None]
        window = positions.shape[1]
        own = jnp.arange(window, dtype=jnp.int32)[None]
        is_end = opening.carried | (slot < 0)
        jump = jnp.where(is_end, own, slot)
        for _ in range(max(window - 1, 1).bit_length()):
            jump = jnp.take_along_axis(jump, jump, 1)
        source = jnp.take_along_axis(source, jump, 1)
        text = jnp.take_along_axis(prefix.tokens, jnp.maximum(source, 0), 1)
        guessed = jnp.take_along_axis(opening.guesses, jump, 1)
        is_guess = jnp.take_along_axis(opening.carried, jump, 1)
        return jnp.where(is_guess, guessed, text)

    return Entry(apply, POINT)


def _fresh_places(keys: Array, opening: Opening) -> Array:
    """Keys [B, W] of draws for fresh guesses."""
    root = opening.prefix.length - 1
    return rng.noise(keys, rng.DRAFT, opening.positions, round=root)


def _places(keys: Array, round: Round, index: Array | None = None) -> Array:
    """Keys [B, 1 + W] of the positions that the lanes predict."""
    root = round.prefix.length - 1
    lanes = jnp.arange(round.draft.tokens.shape[1] + 1)[None]
    position = root[:, None] + 1 + lanes
    return rng.noise(keys, rng.TRANSPORT, position, round=root, index=index)
