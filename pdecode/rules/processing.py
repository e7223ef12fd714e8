"""Logit processing by name, as `pdecode.generate` and the command line ask for it.

One lens a kind, whose numbers, ids and tables are params of the role "lenses": another
penalty is the same program.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import names
from pdecode.contracts import Lens
from pdecode.rules import lenses

__all__ = ["KINDS", "ROLE", "asked"]

ROLE = "lenses"


def _of_params(name: str, make: Callable[..., Lens]) -> Lens:
    """The lens that `make` makes of the params called `name`."""

    def apply(params, view, logits, memory):
        return make(*params[name]).apply(params, view, logits, memory)

    return Lens(apply, role=ROLE)


def _number(low: float, high: float) -> Callable:
    def read(name: str, value: Any, vocab_size: int) -> tuple[Array, ...]:
        del vocab_size
        # NaN lies in no range.
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"{name}={value!r} must be a number in [{low}, {high}]")
        return (jnp.float32(value),)

    return read


def _ids(name: str, value: Any, vocab_size: int) -> tuple[Array, ...]:
    found = [int(each) for each in value]
    if not found or not 0 <= min(found) <= max(found) < vocab_size:
        raise ValueError(
            f"{name}={value!r} must be ids in [0, {vocab_size}), one or more"
        )
    if len(set(found)) == vocab_size:
        raise ValueError(f"{name} holds every id: it must leave one")
    return (jnp.asarray(found, jnp.int32),)


def _places(name: str, value: Any, vocab_size: int) -> tuple[Array, ...]:
    if not value or min(value) < 0:
        raise ValueError(
            f"{name}={value!r} must map places from 0 to ids, at least one"
        )
    (ids,) = _ids(name, [*value.values()], vocab_size + 1)
    if int(ids.max()) >= vocab_size:
        raise ValueError(f"{name}={value!r} must map to ids in [0, {vocab_size})")
    return jnp.asarray([*value], jnp.int32), ids


def _automaton(name: str, value: Any, vocab_size: int) -> tuple[Array, ...]:
    """Of {"states": [{id: next state}], "start": 0, "ends": [ids]}."""
    unknown = sorted(set(value) - {"states", "start", "ends"})
    if unknown or not value.get("states"):
        raise ValueError(
            f"{name} must have states, and may have start and ends"
            + (f", but has {unknown[0]!r}" if unknown else "")
        )
    states, start = value["states"], int(value.get("start", 0))
    moves = np.full((len(states), vocab_size), -1, np.int32)
    for nth, state in enumerate(states):
        for token, after in state.items():
            if not 0 <= int(token) < vocab_size or not 0 <= int(after) < len(states):
                raise ValueError(
                    f"{name}: state {nth} leads by token {token} to state {after}, but "
                    f"ids lie in [0, {vocab_size}) and states in [0, {len(states)})"
                )
            moves[nth, int(token)] = int(after)
    ends = tuple(int(each) for each in value.get("ends", ()))
    if ends and not 0 <= min(ends) <= max(ends) < vocab_size:
        raise ValueError(f"{name}: ends={ends} must be ids in [0, {vocab_size})")
    table = lenses.table_of(moves, start, ends)
    return jnp.asarray(table), jnp.int32(start)


# In the order in which they apply: what is banned no longer counts for min_p, and what
# is forced is so whatever else is banned.
KINDS: dict[str, tuple[Lens, Callable]] = {
    name: (_of_params(name, make), read)
    for name, make, read in (
        ("repetition_penalty", lenses.repetition_penalty, _number(0.01, 100)),
        ("presence_penalty", lenses.presence_penalty, _number(-100, 100)),
        (
            "frequency_penalty",
            lambda each: lenses.presence_penalty(0.0, each),
            _number(-100, 100),
        ),
        ("ban_ids", lenses.ban, _ids),
        ("grammar", lenses.automaton, _automaton),
        ("min_p", lenses.min_p, _number(0, 1)),
        ("forced", lenses.forced, _places),
    )
}


def asked(
    given: Mapping[str, Any], vocab_size: int
) -> tuple[tuple[Lens, ...], dict[str, tuple[Array, ...]]]:
    """(lenses, their params) of what is `given` by the names of KINDS.

    Penalties and min_p are numbers; ban_ids are ids; forced maps the n-th generated
    token, from 0, to an id; grammar is {"states": [{id: next state}], "start": 0,
    "ends": [ids allowed everywhere]}. ValueError for another name and for values out of
    range.
    """
    unknown = sorted(set(given) - set(KINDS))
    if unknown:
        raise ValueError(f"no lens {unknown[0]!r}; {names.listed(unknown[0], KINDS)}")
    found = {name: KINDS[name] for name in KINDS if name in given}
    params = {
        name: read(name, given[name], vocab_size) for name, (_, read) in found.items()
    }
    return tuple(lens for lens, _ in found.values()), params
