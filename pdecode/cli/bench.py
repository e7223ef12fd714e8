"""`pdecode bench`: runs a suite, prints its table, keeps its numbers as JSON."""

import json
import math
import os
import pathlib
import sys
from typing import Any

from pdecode import files, precision
from pdecode.cli import outcome, plot
from pdecode.evals.bench import growth, loop, speculative

REPEATS = {"loop": 51, "speculative": 5}
BATCHES = (1, 8)  # of the suite "speculative"


def run(
    suite: str,
    batch_size: int | None,
    repeats: int | None,
    out: str | None,
    is_quick: bool = False,
) -> dict[str, Any]:
    """Runs "loop" or "speculative", returns its numbers; ValueError for other sizes.

    `out` is a JSON file, written whole at the end; its folder must be there. That of
    "speculative" is written after every line, with a picture beside it at the end, and
    one that was not ended is gone on with.
    """
    if repeats is None:
        repeats = 3 if is_quick else REPEATS[suite]
    check(batch_size, repeats, out)
    if suite == "speculative":
        batches = BATCHES[:1] if is_quick else BATCHES
        if batch_size is not None:
            batches = (batch_size,)
        return _speculative(batches, repeats, out, is_quick)
    made = {"suite": suite, **about(), **_loop(batch_size or 1, repeats)}
    if out:
        write(out, made)
    return made


def check(batch_size: int | None, repeats: int | None, out: str | None) -> None:
    """ValueError for numbers below one, and an `out` that lies in no folder."""
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if out and not os.path.isdir(os.path.dirname(out) or "."):
        raise ValueError(f"out={out} lies in no folder: make it first")


def about() -> dict[str, Any]:
    """The versions and the machine that a result is of."""
    return {
        "versions": outcome.versions(),
        "device": outcome.device(),
        "precision": precision.facts(),
    }


def write(out: str, made: dict[str, Any]) -> None:
    """`made` as the JSON file `out`, there whole or not at all."""
    with files.replacing(out) as file:
        file.write(json.dumps(made, indent=1).encode() + b"\n")


def _speculative(
    batch_sizes: tuple[int, ...], repeats: int, out: str | None, is_quick: bool
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "batch_sizes": list(batch_sizes),
        "num_prompts": math.lcm(*batch_sizes, 4 if is_quick else 8),
        "max_new_tokens": 32 if is_quick else 48,
        "repeats": repeats,
        "is_quick": is_quick,
    }
    made = {"suite": "speculative", **about(), "settings": settings}
    lines = _unended(out, made)
    sizes = {name: settings[name] for name in ("num_prompts", "max_new_tokens")}
    known, lines = lines, []
    for line in speculative.lines(
        cases=speculative.QUICK if is_quick else speculative.CASES,
        batch_sizes=batch_sizes,
        temperatures=(0.8,) if is_quick else (0.0, 0.8),
        repeats=repeats,
        known=known,
        is_told=told,
        **sizes,
    ):
        lines.append(line)
        if out:
            every = [*lines, *(each for each in known if each not in lines)]
            write(out, {**made, "lines": [each._asdict() for each in every],
                         "is_ended": False})  # fmt: skip
    print(speculative.table(lines))
    grown = []
    if not is_quick:
        grown = list(growth.growths(repeats=3 * repeats, is_told=told))
        print(growth.table(grown))
    made["lines"] = [each._asdict() for each in lines]
    made["growth"] = [each._asdict() for each in grown]
    if out:
        write(out, {**made, "is_ended": True})
        picture = plot.drafting(lines, pathlib.Path(out).with_suffix(".png"))
        print(f"written: {out}, {picture}")
    return made


def _unended(out: str | None, made: dict[str, Any]) -> list[speculative.Line]:
    """The lines that a run of the same settings left in `out` without an end."""
    if not out or not os.path.isfile(out):
        return []
    try:
        left = json.loads(pathlib.Path(out).read_text())
        if left["is_ended"] or any(left[name] != made[name] for name in made):
            return []
        return [speculative.Line(**each) for each in left["lines"]]
    except (ValueError, TypeError, KeyError):
        return []  # something else, which is written over


def told(text: str) -> None:
    """Says on standard error what is being measured."""
    print(f"measuring {text}", file=sys.stderr, flush=True)


def _loop(batch_size: int, repeats: int) -> dict[str, Any]:
    found = []
    for case in loop.CASES:
        told(case.name)
        found.append(loop.overhead(case, batch_size=batch_size, repeats=repeats))
    print(loop.table(found))
    return {"cases": [each._asdict() for each in found]}
