"""The ten operations on a waiting line: what is asked, what is right.

`*_random` leaves a place open, so that several answers are right; they are the tasks
that tokens decided together get wrong. An operation is data: what it needs besides the
line, all that is right, and the test of one output, which needs no enumeration.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LENGTHS = (3, 4, 5, 6)

Output = tuple[str, ...]


class Line(NamedTuple):
    """A line of distinct items, and what the operation gets besides."""

    items: Output
    new: str | None = None  # in no item's place yet
    index: int | None = None  # from 0


class Operation(NamedTuple):
    """One of the ten."""

    has_new: bool
    has_index: bool
    extra: int  # places that `index` may name beyond the line's own
    right: Callable[[Line], list[Output]]  # every right output, equally likely
    is_right: Callable[[Line, Output], bool]


def _inserted(line: Line, index: int) -> Output:
    return (*line.items[:index], str(line.new), *line.items[index:])


def _removed(line: Line, index: int) -> Output:
    return (*line.items[:index], *line.items[index + 1 :])


def _replaced(line: Line, index: int) -> Output:
    return (*line.items[:index], str(line.new), *line.items[index + 1 :])


def _one(make: Callable[[Line], Output]) -> Operation:
    """An operation with one answer and nothing besides the line."""
    return Operation(
        False, False, 0, lambda line: [make(line)], lambda line, out: out == make(line)
    )


def _at_index(make, *, has_new: bool, extra: int = 0) -> Operation:
    def made(line: Line) -> Output:
        return make(line, line.index)

    return Operation(
        has_new,
        True,
        extra,
        lambda line: [made(line)],
        lambda line, out: out == made(line),
    )


def _shuffles(line: Line) -> list[Output]:
    return [out for out in itertools.permutations(line.items) if out != line.items]


def _is_shuffle(line: Line, out: Output) -> bool:
    return out != line.items and Counter(out) == Counter(line.items)


def _is_insertion(line: Line, out: Output) -> bool:
    if line.new not in out:
        return False
    place = out.index(line.new)
    return (*out[:place], *out[place + 1 :]) == line.items


def _is_removal(line: Line, out: Output) -> bool:
    missing = set(line.items) - set(out)
    if len(out) != len(line.items) - 1 or len(missing) != 1:
        return False
    return out == tuple(item for item in line.items if item not in missing)


def _is_replacement(line: Line, out: Output) -> bool:
    if len(out) != len(line.items) or line.new not in out:
        return False
    return out == _replaced(line, out.index(line.new))


def _everywhere(make, extra: int = 0) -> Callable[[Line], list[Output]]:
    return lambda line: [make(line, i) for i in range(len(line.items) + extra)]


# Sorting is of the whole text: the paper's prompt says the last name, its answers do
# what stands here.
OPERATIONS: dict[str, Operation] = {
    "copy": _one(lambda line: line.items),
    "reverse": _one(lambda line: line.items[::-1]),
    "sort": _one(lambda line: tuple(sorted(line.items))),
    "shuffle": Operation(False, False, 0, _shuffles, _is_shuffle),
    "insert_index": _at_index(_inserted, has_new=True, extra=1),
    "insert_random": Operation(
        True, False, 0, _everywhere(_inserted, 1), _is_insertion
    ),
    "remove_index": _at_index(_removed, has_new=False),
    "remove_random": Operation(False, False, 0, _everywhere(_removed), _is_removal),
    "replace_index": _at_index(_replaced, has_new=True),
    "replace_random": Operation(
        True, False, 0, _everywhere(_replaced), _is_replacement
    ),
}


def draw(
    name: str, length: int, words: Sequence[str], generator: np.random.Generator
) -> tuple[Line, Output]:
    """A line of `length` of the words, and one right output, each equally likely."""
    operation = OPERATIONS[name]
    chosen = generator.choice(len(words), length + operation.has_new, replace=False)
    items = tuple(words[i] for i in chosen)
    new = items[length] if operation.has_new else None
    index = None
    if operation.has_index:
        index = int(generator.integers(length + operation.extra))
    line = Line(items[:length], new, index)
    if name == "shuffle":  # 719 lists are many to make for one
        out = line.items
        while out == line.items:
            out = tuple(line.items[i] for i in generator.permutation(length))
        return line, out
    right = operation.right(line)
    return line, right[int(generator.integers(len(right)))]
