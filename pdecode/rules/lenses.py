"""Lenses: changes of the law before anything is drawn from it or measured on it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Lens, View
from pdecode.sampling import BANNED

__all__ = [
    "Credits",
    "automaton",
    "ban",
    "before",
    "credit",
    "force",
    "forced",
    "grammar",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "table_of",
]


class Credits(NamedTuple):
    """Memory of one position: the tokens it lately held to be best."""

    ids: Array  # int32 [K]  V and above: nobody
    credit: Array  # float32 [K]


def credit(
    num_kept: int, alpha: Array | float, beta: Array | float, gamma: Array | float
) -> Lens:
    """Tokens that were best at a position for long are raised (CreditDecoding).

    A step multiplies all credit of the position by `beta`, gives p ** `gamma` more to
    its best token (of probability p before the raise), and adds alpha * log(1 + credit)
    to the logits. The dense rule keeps V credits a position; this one keeps `num_kept`
    and drops the smallest when one more token becomes best: the dense rule itself
    wherever no more than `num_kept` tokens ever were. Wang et al., 2025,
    arXiv:2510.06133. ValueError for num_kept below 1.
    """
    if num_kept < 1:
        raise ValueError(f"{num_kept=} must be at least 1")

    def init() -> Credits:
        nobody = jnp.full(num_kept, jnp.iinfo(jnp.int32).max, jnp.int32)
        return Credits(nobody, jnp.zeros(num_kept, jnp.float32))

    def apply(params, view: View, logits: Array, memory: Credits):
        del params, view
        ids, kept = memory.ids, beta * memory.credit
        top = jnp.argmax(logits).astype(jnp.int32)
        gain = jnp.exp(gamma * jax.nn.log_softmax(logits)[top])
        is_known = (ids == top).any()
        place = jnp.where(is_known, jnp.argmax(ids == top), jnp.argmin(kept))
        before = jnp.where(is_known, kept[place], 0.0)
        ids = ids.at[place].set(top)
        kept = kept.at[place].set((before + gain).astype(jnp.float32))
        raised = (alpha * jnp.log1p(kept)).astype(logits.dtype)
        return logits.at[ids].add(raised, mode="drop"), Credits(ids, kept)

    return Lens(apply, init)


# Logit processing of next-token decoding: functions of the position's own context, the
# text before it, with nothing remembered. Give the same lens to the target and to its
# drafter: what the target forbids is then not drafted.


def before(view: View) -> Array:
    """bool [L]: the known tokens in front of the position."""
    return view.known & (jnp.arange(view.tokens.shape[0]) < view.position)


def repetition_penalty(penalty: Any, *, with_prompt: bool = True) -> Lens:
    """Logits of tokens that stand in the text: over `penalty` if positive, else times.

    Keskar et al., 2019, arXiv:1909.05858, as in the libraries: a token counts once.
    `with_prompt=False` leaves the prompt's tokens alone. 1 changes nothing.
    """

    def apply(params, view: View, logits: Array, memory):
        del params
        seen = _counts(view, logits, with_prompt) > 0
        lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
        return jnp.where(seen & (logits > BANNED), lowered, logits), memory

    return Lens(apply)


def presence_penalty(presence: Any = 0.0, frequency: Any = 0.0) -> Lens:
    """logits - presence * [token was generated] - frequency * times it was.

    The prompt does not count. Zeros change nothing.
    """

    def apply(params, view: View, logits: Array, memory):
        del params
        counts = _counts(view, logits, with_prompt=False)
        lowered = logits - presence * (counts > 0) - frequency * counts
        return jnp.where(logits > BANNED, lowered, logits), memory

    return Lens(apply)


def min_p(share: Any) -> Lens:
    """Tokens with less than `share` of the likeliest one's probability are out.

    Of the law at temperature 1 (Nguyen et al., 2024, arXiv:2407.01082). 0 changes
    nothing.
    """

    def apply(params, view: View, logits: Array, memory):
        del params, view
        least = logits.max() + jnp.log(share)
        return jnp.where(logits >= least, logits, BANNED), memory

    return Lens(apply)


def ban(ids: tuple[int, ...] | Array) -> Lens:
    """Tokens `ids` are not in the law. ValueError for none."""
    if not len(ids):
        raise ValueError("ids=() bans nothing: leave the lens out")

    def apply(params, view: View, logits: Array, memory):
        del params, view
        return logits.at[jnp.asarray(ids)].set(BANNED), memory

    return Lens(apply)


def force(at: dict[int, int]) -> Lens:
    """Token at[n] is the n-th generated, from 0; other positions are free.

    ValueError for a negative place or id, and for none.
    """
    if not at or min(*at, *at.values()) < 0:
        raise ValueError(f"{at=} must map places from 0 to ids from 0, at least one")
    return forced(jnp.array(list(at), jnp.int32), jnp.array(list(at.values())))


def forced(places: Array, ids: Array) -> Lens:
    """`force` of arrays int32 [N]. What is forced is so even if it is banned."""

    def apply(params, view: View, logits: Array, memory):
        del params
        here = places == view.position - view.prompt_end
        token = jnp.where(here, ids, 0).sum()
        its = jnp.where(logits > BANNED, logits, 0)
        only = jnp.where(jnp.arange(logits.shape[0]) == token, its, BANNED)
        return jnp.where(here.any(), only, logits), memory

    return Lens(apply)


def grammar(moves: np.ndarray, start: int = 0, ends: tuple[int, ...] = ()) -> Lens:
    """Only tokens that a deterministic automaton allows.

    moves[s, t], int [S, V], is the state after token t in state s; below zero t is not
    allowed there. The state before a position is that after the tokens generated so
    far, from `start`. Every state that can be reached must allow a token, such as an
    EOS that leads back to it; `ends` are ids allowed everywhere, which leave the state
    as it is. ValueError for a table with a state out of range or a dead end.
    """
    return automaton(jnp.asarray(table_of(moves, start, ends)), start)


def table_of(
    moves: np.ndarray, start: int = 0, ends: tuple[int, ...] = ()
) -> np.ndarray:
    """The table int32 [S, V] of a `grammar`, checked; errors as there."""
    moves = np.array(moves, np.int32)
    for token in ends:
        moves[:, token] = np.arange(moves.shape[0])
    _check_grammar(moves, start)
    return moves


def automaton(table: Array, start: Any) -> Lens:
    """The lens of a table of `table_of` and where it starts."""

    def apply(params, view: View, logits: Array, memory):
        del params
        counted = before(view) & (jnp.arange(view.tokens.shape[0]) >= view.prompt_end)

        def read(state, place):
            after = table[state, view.tokens[place]]
            moved = jnp.where(counted[place] & (after >= 0), after, state)
            return moved, None

        places = jnp.arange(view.tokens.shape[0])
        begun = jnp.asarray(start, table.dtype)
        state, _ = jax.lax.scan(read, begun, places)
        return jnp.where(table[state] >= 0, logits, BANNED), memory

    return Lens(apply)


def _counts(view: View, logits: Array, with_prompt: bool) -> Array:
    """How often each token stands before the position [V]."""
    counted = before(view)
    if not with_prompt:
        counted &= jnp.arange(view.tokens.shape[0]) >= view.prompt_end
    blank = jnp.zeros(logits.shape, logits.dtype)
    return blank.at[view.tokens].add(counted.astype(logits.dtype), mode="drop")


def _check_grammar(moves: np.ndarray, start: int) -> None:
    num_states = moves.shape[0]
    if not 0 <= start < num_states or moves.max() >= num_states:
        raise ValueError(
            f"{start=} and the states of moves must lie in [0, {num_states})"
        )
    reached, fresh = {start}, [start]
    while fresh:
        state = fresh.pop()
        after = set(moves[state][moves[state] >= 0].tolist())
        if not after:
            raise ValueError(f"state {state} of the grammar allows no token")
        fresh += after - reached
        reached |= after
