"""`pdecode bench`: runs a suite, prints its table, keeps its numbers as JSON."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from pdecode import files
from pdecode.cli import outcome, visual
from pdecode.evals.bench import hotpath, loop
from pdecode.models import shapes as known_shapes

CONTEXT, KERNEL_SLOTS = 256, 1024  # cached tokens of a call; slots of one attention
PROMPT_LEN, NUM_NEW = 64, 64  # of the decodes that torch does too


def run(
    suite: str,
    shapes: Sequence[str],
    dtype: str,
    batch_size: int,
    repeats: int | None,
    out: str | None,
) -> None:
    """Runs a suite; ValueError for sizes, shapes or dtypes it lacks.

    `out` is a JSON file, written whole at the end; its folder must be there. The suite
    "visual" puts its plot and its sheets of samples beside it.
    """
    if repeats is None:
        repeats = 51 if suite == "loop" else 5
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if out and not os.path.isdir(os.path.dirname(out) or "."):
        raise ValueError(f"out={out} lies in no folder: make it first")
    if suite == "visual":
        measured = visual.run(out)
    elif suite == "loop":
        measured = _loop(batch_size, repeats)
    else:
        measured = _hotpath(shapes, dtype, batch_size, repeats)
    if out:
        about = {"versions": outcome.versions(), "device": outcome.device()}
        made = json.dumps({"suite": suite, **about, **measured}, indent=1)
        with files.replacing(out) as file:
            file.write(made.encode() + b"\n")


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
