"""`pdecode bench --suite parallelbench`: a table that goes on where it was."""

import hashlib
import json
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from pdecode import assembly, files
from pdecode.cli import outcome, program_cache
from pdecode.evals.parallelbench import exact, suite, summary

EXACT = "exact"  # no name of an embedded model
MODEL = "task_masked"
NUM, NUM_QUICK = 50, 25  # instances of each task


def run(
    model: str | None,
    out: str | None,
    *,
    num: int | None = None,
    is_quick: bool = False,
    seed: int = 0,
) -> None:
    """Measures what `out` does not hold yet, prints the table, draws it beside `out`.

    `model` is "exact" (a perfect model of the waiting lines), an embedded model or the
    folder of a run; `num` are the instances of each task, of "exact" the draws at each
    length. `out` is a JSON file, written after every value of a knob. ValueError for a
    file of another run, and for a model that is no masked one.
    """
    name = MODEL if model is None else model
    if out and not os.path.isdir(os.path.dirname(out) or "."):
        raise ValueError(f"out={out} lies in no folder: make it first")
    if num is None:
        num = NUM_QUICK if is_quick else NUM
    if num < 1:
        raise ValueError(f"instances={num} must be at least 1")
    source = _source(name, num, seed)
    entries = [
        each
        for each in suite.entries(source.model)
        # A source that is sampled anyway has no use for the sampled entry.
        if not (is_quick and each.name not in suite.QUICK)
        and not (each.settings.keys() & source.settings.keys())
    ]
    for entry in entries:
        for max_new_tokens in {batch.max_new_tokens for batch in source.batches}:
            suite.check(entry, source.model, max_new_tokens)
    about = {"suite": "parallelbench", "model": name, "instances": num, "seed": seed}
    about["weights"] = _fingerprint(source.batches[0].params)
    program_cache.enable()
    cells = _kept(out, about)
    known = {(cell.name, cell.value) for cell in cells}
    for entry in entries:
        for value in entry.values:
            if (entry.name, float(value)) in known:
                continue
            print(f"{entry.name}: {entry.knob} {value:g}", file=sys.stderr, flush=True)
            cells += suite.measure(entry, value, source, seed)
            _write(out, about, cells)
    points = summary.points(cells)
    print(summary.table(cells))
    if out:
        path = pathlib.Path(out).with_suffix(".png")
        plot(points, f"{name}, {num} instances a task", path)
        print(f"written: {out}, {path}")


def _source(name: str, num: int, seed: int) -> suite.Source:
    if name == EXACT:
        return exact.source(num)
    made, params, _ = assembly.load(name)
    if getattr(made, "predicts", None) != "masked":
        raise ValueError(f"model={name!r} must predict masked tokens")
    return suite.trained(made, params, num, seed)


def _fingerprint(params: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _kept(out: str | None, about: dict[str, Any]) -> list[suite.Cell]:
    """What an earlier run left; ValueError if it was another one."""
    stored = files.read_object(out) if out else {}
    for field, value in about.items() if stored else ():
        if stored.get(field) != value:
            raise ValueError(
                f"{out} holds {field}={stored.get(field)!r}, not {value!r}: choose "
                "another --out, or remove it"
            )
    if stored and tuple(stored["fields"]) != suite.Cell._fields:
        raise ValueError(f"{out} is of another version: choose another --out")
    return [suite.Cell(*cell) for cell in stored.get("cells", ())]


def _write(out: str | None, about: dict[str, Any], cells: list[suite.Cell]) -> None:
    if not out:
        return
    points = summary.points(cells)
    document = {
        **about,
        "versions": outcome.versions(),
        "device": outcome.device(),
        "aup": summary.areas(points),
        "speeds": {k: v._asdict() for k, v in summary.speeds(cells).items()},
        "points": [point._asdict() for point in points],
        "fields": suite.Cell._fields,
        "cells": cells,  # each a list
    }
    with files.replacing(out) as file:
        file.write(json.dumps(document).encode() + b"\n")


def plot(points: list[summary.Point], title: str, path: pathlib.Path) -> None:
    """Accuracy against tokens a call, one panel for each kind of tasks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(point.name for point in points))
    for axes, kind in zip(panels, summary.KINDS, strict=True):
        for number, name in enumerate(names):
            mine = [p for p in points if (p.name, p.kind) == (name, kind)]
            mine.sort(key=lambda p: p.tokens_per_call)
            if not mine:
                continue
            heights = np.array([p.accuracy for p in mine])
            ends = [[p.low for p in mine], [p.high for p in mine]]
            axes.errorbar(
                [p.tokens_per_call for p in mine],
                heights,
                np.abs(np.array(ends) - heights),
                marker="osD^v"[number % 5],
                ms=4,
                lw=1,
                elinewidth=0.5,
                color=f"C{number % 10}",
                ls="-" if number < 10 else "--",
                label=name,
            )
        axes.set_title(f"tasks with {kind}")
        axes.set_xlabel("tokens per call")
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("right answers, % (bars: 95 %)")
    panels[1].legend(fontsize=7, loc="upper right")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
