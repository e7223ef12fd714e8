"""Logit processing by name, as `pdecode.generate` and the command line ask for it.

One lens a kind, whose numbers, ids and tables are params of the role "lenses": another
penalty is the same program.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

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


class _Words(NamedTuple):
    """What ids may be: any of the vocabulary but the mask, which is never drawn."""

    vocab_size: int
    mask_id: int | None
    banned: tuple[int, ...] = ()  # by ban_ids
    forced: tuple[int, ...] = ()  # somewhere, which may be banned besides

    def has(self, token: int) -> bool:
        return 0 <= token < self.vocab_size

    @property
    def left(self) -> set[int]:
        """Ids that may still be drawn where nothing is forced."""
        return {*range(self.vocab_size)} - {self.mask_id, *self.banned}


def _whole(value: Any) -> int:
    """`value` as a whole number, JSON's keys too; -1, out of every range, if none."""
    try:
        return int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        return -1


def _number(low: float, high: float) -> Callable:
    def read(name: str, value: Any, words: _Words) -> tuple[Array, ...]:
        del words
        # NaN lies in no range.
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"{name}={value!r} must be a number in [{low}, {high}]")
        return (jnp.float32(value),)

    return read


def _ids(name: str, value: Any, words: _Words) -> tuple[Array, ...]:
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    found = [_whole(each) for each in value] if listed else []
    if not found or not all(map(words.has, found)):
        raise ValueError(
            f"{name}={value!r} must be ids in [0, {words.vocab_size}), one or more"
        )
    if not words.left - {*found}:
        raise ValueError(f"{name} holds every id that may be drawn: it must leave one")
    return (jnp.asarray(found, jnp.int32),)


def _places(name: str, value: Any, words: _Words) -> tuple[Array, ...]:
    if not isinstance(value, Mapping) or not value or min(map(_whole, value)) < 0:
        raise ValueError(
            f"{name}={value!r} must map places from 0 to ids, at least one"
        )
    found = {_whole(place): _whole(token) for place, token in value.items()}
    for token in found.values():
        if not words.has(token) or token == words.mask_id:
            but = (
                ""
                if words.mask_id is None
                else f", but not to the mask's, {words.mask_id}"
            )
            raise ValueError(
                f"{name}={value!r} must map to ids in [0, {words.vocab_size}){but}"
            )
    return jnp.asarray([*found], jnp.int32), jnp.asarray([*found.values()], jnp.int32)


def _automaton(name: str, value: Any, words: _Words) -> tuple[Array, ...]:
    """Of {"states": [{id: next state}], "start": 0, "ends": [ids]}."""
    own = value if isinstance(value, Mapping) else {}
    unknown = sorted(map(str, set(own) - {"states", "start", "ends"}))
    states, ends = own.get("states"), own.get("ends", ())
    is_listed = isinstance(states, (list, tuple)) and isinstance(ends, (list, tuple))
    if unknown or not states or not is_listed:
        raise ValueError(
            f"{name} must have states (a list), and may have start and ends (a list)"
            + (f", but has {unknown[0]!r}" if unknown else "")
        )
    moves = np.full((len(states), words.vocab_size), -1, np.int32)
    for nth, state in enumerate(states):
        if not isinstance(state, Mapping):
            raise ValueError(
                f"{name}: state {nth} is {state!r}, but must map ids to the next states"
            )
        for token, after in state.items():
            if not words.has(_whole(token)) or not 0 <= _whole(after) < len(states):
                raise ValueError(
                    f"{name}: state {nth} leads by token {token} to state {after}, but "
                    f"ids lie in [0, {words.vocab_size}) and states in "
                    f"[0, {len(states)})"
                )
            moves[nth, _whole(token)] = _whole(after)
    if not all(words.has(_whole(each)) for each in ends):
        raise ValueError(f"{name}: ends={ends} must be ids in [0, {words.vocab_size})")
    start = _whole(own.get("start", 0))
    table = lenses.table_of(moves, start, tuple(map(_whole, ends)))
    _check_left(name, table, start, words)
    return jnp.asarray(table), jnp.int32(start)


def _check_left(name: str, table: np.ndarray, start: int, words: _Words) -> None:
    """ValueError where bans leave no token of a state that can be reached."""
    left = table.copy()
    left[:, [*{*range(words.vocab_size)} - words.left]] = -1
    begun = {start, *table[:, [*words.forced]].ravel().tolist()} - {-1}
    for state in begun:
        try:
            lenses.table_of(left, state)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error} that may be drawn: ban_ids and the mask are not"
            ) from None


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
    given: Mapping[str, Any], vocab_size: int, mask_id: int | None = None
) -> tuple[tuple[Lens, ...], dict[str, tuple[Array, ...]]]:
    """(lenses, their params) of what is `given` by the names of KINDS.

    Penalties and min_p are numbers; ban_ids are ids; forced maps the n-th generated
    token, from 0, to an id; grammar is {"states": [{id: next state}], "start": 0,
    "ends": [ids allowed everywhere]}. A model's `mask_id` is never drawn. ValueError
    for another name, for values out of range and where bans leave no token of a state.
    """
    unknown = sorted(set(given) - set(KINDS))
    if unknown:
        raise ValueError(f"no lens {unknown[0]!r}; {names.listed(unknown[0], KINDS)}")
    found = {name: KINDS[name] for name in KINDS if name in given}
    words, params = _Words(vocab_size, mask_id), {}
    # What is banned and forced is known before a grammar is read.
    for name in sorted(found, key=lambda each: each == "grammar"):
        params[name] = found[name][1](name, given[name], words)
        if name == "ban_ids":
            words = words._replace(banned=tuple(params[name][0].tolist()))
        if name == "forced":
            words = words._replace(forced=tuple(params[name][1].tolist()))
    return tuple(lens for lens, _ in found.values()), params
