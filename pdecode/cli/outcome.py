"""What a comparison leaves on disk: JSON, CSV, Markdown, a plot; facts of the run."""

import csv
import datetime
import io
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax

from pdecode import __version__, files, precision
from pdecode.cli import plot, table
from pdecode.evals import tasks
from pdecode.evals.compare import Context, Finished
from pdecode.evals.rows import Row

# What a row holds beside single values.
_LONG = (
    "settings", "decode_s", "differences", "texts", "commit_steps", "pieces", "probs"
)  # fmt: skip


def new_folder(chosen: str | None) -> pathlib.Path:
    """An empty folder for results, made before anything is measured.

    None: results/compare-DATE-TIME. ValueError if it cannot be written or if `chosen`
    holds results already.
    """
    if chosen is not None:
        folder = pathlib.Path(chosen)
        if (folder / "compare.json").exists():
            raise ValueError(f"out={chosen} holds results already: choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    else:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = pathlib.Path("results") / f"compare-{now}"
        number = 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"compare-{now}-{number}")
        folder.mkdir(parents=True)
    with files.replacing(folder / ".writable"):
        pass
    (folder / ".writable").unlink()
    return folder


def document(
    context: Context,
    finished: Finished,
    spent: dict[str, float],
    *,
    is_complete: bool,
) -> dict[str, Any]:
    """Everything measured, as plain data."""
    rows, costs, there = finished
    settings = context.settings._asdict()
    # Functions and meshes by name.
    if settings["methods"] is not None:
        settings["methods"] = [entry.name for entry in context.entries]
    if settings["mesh"] is not None:
        settings["mesh"] = dict(settings["mesh"].shape)
    curves = None
    if costs is not None:
        curves = {
            name: None
            if curve is None
            else dict(zip(map(str, curve.widths), curve.seconds))
            for name, curve in (("target", costs.target), ("drafter", costs.drafter))
        }
    return {
        "is_complete": is_complete,
        "settings": settings,
        "models": {entry.name: entry.model_names for entry in context.entries},
        "judge": context.judge_name,
        "versions": versions(),
        "device": device(),
        "precision": precision.facts(context.dtype)
        | {"near_tie": precision.near_tie(context.dtype)},
        "prompts": [each._asdict() for each in context.completions],
        "task": tasks.TASK,
        "held_out": context.held_out,
        "rows": [row._asdict() for row in rows],
        "call_seconds": curves,
        "hardware": None
        if there is None
        else {"name": there.name, "about": there.about},
        "seconds": spent,
        "notes": context.notes,
    }


def write(
    folder: pathlib.Path, made: dict[str, Any], rows: Sequence[Row]
) -> list[pathlib.Path]:
    """compare.json, .csv, .md and .png in `folder`; the paths written."""
    texts = {
        "json": json.dumps(made, indent=1) + "\n",
        "csv": as_csv(rows),
        "md": table.markdown(rows),
    }
    paths = []
    for kind, text in texts.items():
        paths.append(folder / f"compare.{kind}")
        with files.replacing(paths[-1]) as file:
            file.write(text.encode())
    return [*paths, *plot.plot(made, folder / "compare.png")]


def as_csv(rows: Sequence[Row]) -> str:
    """One line a method; settings as JSON, a middle half as two columns."""
    out = io.StringIO()
    names = [name for name in Row._fields if name not in _LONG]
    halves = [name for name in names if name.endswith("_half")]
    plain = [name for name in names if name not in halves]
    heads = [*plain, *(f"{name}_{end}" for name in halves for end in ("low", "high"))]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*heads, "settings"])
    for row in rows:
        cells = [getattr(row, name) for name in plain]
        cells += [end for name in halves for end in getattr(row, name)]
        writer.writerow([*cells, json.dumps(row.settings)])
    return out.getvalue()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import jaxlib
    import numpy

    return {
        "pdecode": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": numpy.__version__,
    }


def device() -> dict[str, Any]:
    """The machine, without its name."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
