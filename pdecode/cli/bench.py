"""`pdecode bench`: runs a suite, prints its table, keeps its numbers as JSON."""

import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pdecode import files
from pdecode.cli import outcome, plot
from pdecode.evals.bench import growth, hotpath, loop, speculative
from pdecode.models import shapes as known_shapes

CONTEXT, KERNEL_SLOTS = 256, 1024  # cached tokens of a call; slots of one attention
PROMPT_LEN, NUM_NEW = 64, 64  # of the decodes that torch does too
REPEATS = {"loop": 51, "hotpath": 5, "speculative": 5}
BATCHES = (1, 8)  # of the suite "speculative"


def run(
    suite: str,
    shapes: Sequence[str],
    dtype: str,
    batch_size: int | None,
    repeats: int | None,
    out: str | None,
    is_quick: bool = False,
) -> dict[str, Any]:
    """Runs a suite and returns its numbers; ValueError for sizes, shapes or dtypes it
    lacks.

    `out` is a JSON file, written whole at the end; its folder must be there. That of
    "speculative" is written after every line, with a picture beside it at the end, and
    one that was not ended is gone on with.
    """
    if repeats is None:
        repeats = 3 if is_quick else REPEATS[suite]
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if out and not os.path.isdir(os.path.dirname(out) or "."):
        raise ValueError(f"out={out} lies in no folder: make it first")
    if suite == "speculative":
        batches = BATCHES[:1] if is_quick else BATCHES
        if batch_size is not None:
            batches = (batch_size,)
        return _speculative(batches, repeats, out, is_quick)
    if suite == "loop":
        measured = _loop(batch_size or 1, repeats)
    else:
        measured = _hotpath(shapes, dtype, batch_size or 1, repeats)
    made = {"suite": suite, **_about(), **measured}
    if out:
        _write(out, made)
    return made


def _about() -> dict[str, Any]:
    return {"versions": outcome.versions(), "device": outcome.device()}


def _write(out: str, made: dict[str, Any]) -> None:
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
    made = {"suite": "speculative", **_about(), "settings": settings}
    lines = _unended(out, made)
    sizes = {name: settings[name] for name in ("num_prompts", "max_new_tokens")}
    known, lines = lines, []
    for line in speculative.lines(
        cases=speculative.QUICK if is_quick else speculative.CASES,
        batch_sizes=batch_sizes,
        temperatures=(0.8,) if is_quick else (0.0, 0.8),
        repeats=repeats,
        known=known,
        is_told=_told,
        **sizes,
    ):
        lines.append(line)
        if out:
            every = [*lines, *(each for each in known if each not in lines)]
            _write(out, {**made, "lines": [each._asdict() for each in every],
                         "is_ended": False})  # fmt: skip
    print(speculative.table(lines))
    grown = []
    if not is_quick:
        grown = list(growth.growths(repeats=3 * repeats, is_told=_told))
        print(growth.table(grown))
    made["lines"] = [each._asdict() for each in lines]
    made["growth"] = [each._asdict() for each in grown]
    if out:
        _write(out, {**made, "is_ended": True})
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


def _told(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)


def _loop(batch_size: int, repeats: int) -> dict[str, Any]:
    found = []
    for case in loop.CASES:
        print(f"measuring {case.name}", file=sys.stderr, flush=True)
        found.append(loop.overhead(case, batch_size=batch_size, repeats=repeats))
    print(loop.table(found))
    return {"cases": [each._asdict() for each in found]}


def _hotpath(shapes, dtype: str, batch: int, repeats: int) -> dict[str, Any]:
    for shape in shapes:
        known_shapes.config(shape, dtype)
    found = hotpath.peaks(dtype)
    lines = []
    for shape in shapes:
        print(f"measuring {shape}", file=sys.stderr, flush=True)
        lines += hotpath.calls(shape, dtype, batch, CONTEXT, found)
        lines += hotpath.attentions(shape, dtype, batch, KERNEL_SLOTS, found)
        lines += hotpath.heads(shape, dtype, batch, found)
        if shape in hotpath.DECODED:
            lines += hotpath.decodes(shape, PROMPT_LEN, NUM_NEW, repeats)
    print(hotpath.table(found, lines))
    if not any(line.part == "decode" for line in lines):
        print("decodes are compared with torch: pip install 'pdecode[oracle]'")
    return {
        "peaks": found._asdict(),
        "lines": [line._asdict() for line in lines],
        "torch": hotpath.torch_versions(),
    }
