"""Cells to points, areas and a table."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pdecode.evals import quality
from pdecode.evals.parallelbench.suite import SEVERAL, Cell

KINDS = ("one answer", "several answers")


class Point(NamedTuple):
    """One entry at one value, over the tasks of one kind; each task counts alike."""

    name: str
    knob: str
    value: float
    kind: str
    accuracy: float  # percent
    low: float  # 95 % of Wilson's interval
    high: float
    tokens_per_call: float
    queries_per_token: float


def kind_of(task: str) -> str:
    """Whether a task has several right answers."""
    return KINDS[task in SEVERAL]


def points(cells: Iterable[Cell]) -> list[Point]:
    """A point for each entry, value and kind, in the order of the cells."""
    grouped: dict[tuple, list[Cell]] = {}
    for cell in cells:
        key = (cell.name, cell.knob, cell.value, kind_of(cell.task))
        grouped.setdefault(key, []).append(cell)
    found = []
    for key, some in grouped.items():
        num, right = sum(c.num for c in some), sum(c.right for c in some)
        low, high = quality.wilson(right, num)
        tokens = sum(c.tokens for c in some)
        found.append(
            Point(
                *key,
                accuracy=100 * right / num,
                low=100 * low,
                high=100 * high,
                tokens_per_call=tokens / max(sum(c.calls for c in some), 1),
                queries_per_token=sum(c.queries for c in some) / max(tokens, 1),
            )
        )
    return found


def aup(curve: Iterable[tuple[float, float]], alpha: float = 3.0) -> float:
    """Accuracy under parallelism of (tokens a call, accuracy in percent) points.

    d3LLM, arXiv:2601.07568: rho_1 y_1 and the trapezoids behind it, each accuracy
    weighed by exp(-alpha (1 - y / y_max)); points more than 5 below that of the fewest
    tokens a call do not count. ValueError without a point.
    """
    ordered = sorted(curve)
    if not ordered:
        raise ValueError("no points: there is no area under them")
    first = ordered[0][1]
    kept = [(rho, y) for rho, y in ordered if y >= first - 5]
    best = max(y for _, y in kept)
    if best <= 0:
        return 0.0
    worth = [y * min(math.exp(-alpha * (1 - y / best)), 1.0) for _, y in kept]
    area = kept[0][0] * kept[0][1]
    for i in range(1, len(kept)):
        area += 0.5 * (kept[i][0] - kept[i - 1][0]) * (worth[i] + worth[i - 1])
    return area


def areas(found: Sequence[Point]) -> dict[str, dict[str, float]]:
    """Name of an entry -> kind -> AUP over its values."""
    made: dict[str, dict[str, float]] = {}
    for point in found:
        if point.kind not in made.setdefault(point.name, {}):
            mine = [p for p in found if (p.name, p.kind) == (point.name, point.kind)]
            made[point.name][point.kind] = aup(
                (p.tokens_per_call, p.accuracy) for p in mine
            )
    return made


class Speeds(NamedTuple):
    """Tokens a call that keep every task within `SLACK` points of the best accuracy
    that any entry has there; None where no value does.
    """

    one_value: float | None  # the fastest value for all tasks
    own_values: float | None  # each task with the fastest value for itself


SLACK = 5.0


def speeds(cells: Sequence[Cell]) -> dict[str, Speeds]:
    """Name of an entry -> what one setting for all tasks costs.

    A knob that adapted to the task by itself would have both alike.
    """
    low: dict[str, float] = {}
    for cell in cells:
        low[cell.task] = max(low.get(cell.task, 0), _percent(cell) - SLACK)
    return {
        name: _speeds([cell for cell in cells if cell.name == name], low)
        for name in dict.fromkeys(cell.name for cell in cells)
    }


def _speeds(mine: Sequence[Cell], low: dict[str, float]) -> Speeds:
    good = [cell for cell in mine if _percent(cell) >= low[cell.task]]
    one, own = [], []
    for value in {cell.value for cell in mine}:
        some = [cell for cell in good if cell.value == value]
        if len(some) == len(low):
            one.append(_speed(some))
    for task in low:
        some = [cell for cell in good if cell.task == task]
        if some:
            own.append(max(some, key=lambda cell: cell.tokens / max(cell.calls, 1)))
    is_whole = len(own) == len(low)
    return Speeds(max(one, default=None), _speed(own) if is_whole else None)


def _percent(cell: Cell) -> float:
    return 100 * cell.right / cell.num


def _speed(cells: Sequence[Cell]) -> float:
    return sum(c.tokens for c in cells) / max(sum(c.calls for c in cells), 1)


def table(cells: Sequence[Cell]) -> str:
    """A line for each entry and value, both kinds beside each other, then the sums."""
    found = points(cells)
    pairs: dict[tuple, dict[str, Point]] = {}
    for point in found:
        pairs.setdefault((point.name, point.knob, point.value), {})[point.kind] = point
    head = f"{'method':24} {'knob':>20}" + "".join(f" | {kind:^31}" for kind in KINDS)
    under = " " * 45 + " |   acc      95 %     tok/call q/tok" * len(KINDS)
    lines = [head, under]
    for (name, knob, value), both in pairs.items():
        line = f"{name:24} {f'{knob} {value:g}':>20}"
        for kind in KINDS:
            line += " | " + _cell(both.get(kind))
        lines.append(line)
    lines.append("")
    lines.append(
        f"{'':24} {'AUP: ' + KINDS[0]:>18}{KINDS[1]:>18}"
        f"{'one value':>12}{'own values':>12}"
    )
    areas_of, speeds_of = areas(found), speeds(cells)
    for name, of_kind in areas_of.items():
        line = f"{name:24} "
        for kind in KINDS:
            line += f"{of_kind[kind]:18.1f}" if kind in of_kind else " " * 18
        for speed in speeds_of[name]:
            line += f"{'-' if speed is None else f'{speed:.2f}':>12}"
        lines.append(line)
    lines.append(
        "one value, own values: tokens a call, by one setting for all tasks or by one "
        f"for each, within {SLACK:g} points of the best that any method has on each"
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(point: Point | None) -> str:
    if point is None:
        return " " * 31
    return (
        f"{point.accuracy:5.1f} {point.low:5.1f}-{point.high:5.1f} "
        f"{point.tokens_per_call:8.2f} {point.queries_per_token:6.1f}"
    )
