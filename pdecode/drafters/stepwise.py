"""A drafter that waits for the end of a step which the target rewrites."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Drafter, Prefix, Round

__all__ = ["Steps", "is_delimiter", "stepwise"]


class Steps(NamedTuple):
    """The drafter's own state, and who writes."""

    inner: Any
    is_rewritten: Array  # bool [B]  the target writes this step, token by token


def stepwise(drafter: Drafter, delimiters: tuple[int, ...]) -> Drafter:
    """`drafter`, silent from a draft of which nothing was accepted to the step's end.

    A step ends with one of the ids `delimiters`. Raises ValueError if there is none.
    """
    if not delimiters:
        raise ValueError("delimiters is empty: a step needs an end")

    def init(params, keys, prompt, prefix: Prefix, output):
        inner = drafter.init(params, keys, prompt, prefix, output)
        return Steps(inner, jnp.zeros(prefix.length.shape, bool))

    def propose(params, keys, state: Steps, prefix: Prefix):
        draft, inner = drafter.propose(params, keys, state.inner, prefix)
        tokens = jnp.where(state.is_rewritten[:, None], -1, draft.tokens)
        return draft._replace(tokens=tokens), state._replace(inner=inner)

    def observe(params, keys, state: Steps, round: Round):
        inner = drafter.observe(params, keys, state.inner, round)
        was_refused = (round.draft.tokens >= 0).any(1) & (round.num_accepted == 0)
        is_end = is_delimiter(round.next_token, delimiters)
        return Steps(inner, (state.is_rewritten | was_refused) & ~is_end)

    return drafter._replace(init=init, propose=propose, observe=observe)


def is_delimiter(tokens: Array, delimiters: tuple[int, ...]) -> Array:
    """bool, of the shape of `tokens`."""
    found = jnp.zeros(tokens.shape, bool)
    for token in delimiters:
        found |= tokens == token
    return found
