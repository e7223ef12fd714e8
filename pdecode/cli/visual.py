"""The suite "visual" of `pdecode bench`, and drawn digits as PNG files."""

import json
import os
import sys
from typing import Any

import numpy as np

from pdecode.models import digits

NUM_SAMPLES = 1000
ON_A_SHEET = 50


def run(out: str | None, num_samples: int = NUM_SAMPLES) -> dict[str, Any]:
    """Draws with every entry, prints the table and returns the numbers.

    `out` is a JSON file, whose folder must be there; the plot and sheets of samples
    are written beside it. ValueError without scikit-learn.
    """
    from pdecode import files
    from pdecode.cli import outcome
    from pdecode.data import digits as data
    from pdecode.evals import images
    from pdecode.evals.bench import visual

    if out and not os.path.isdir(os.path.dirname(out) or "."):
        raise ValueError(f"out={out} lies in no folder: make it first")
    by = visual.judge()
    best, lines = visual.real(by), []
    stem = None if out is None else os.path.splitext(out)[0]
    for entry in visual.ENTRIES:
        print(f"drawing by {entry.name}", file=sys.stderr, flush=True)
        made = visual.draw(entry, num_samples)
        lines.append(visual.line(entry, by, made))
        if stem is not None:
            name = entry.name.replace(" ", "_")
            images.sheet(f"{stem}-{name}.png", made.images[:ON_A_SHEET])
    print(visual.table(lines, by, best))
    if stem is not None:
        visual.plot(lines, best, f"{stem}.png")
        pictures, labels = data.images("heldout")
        some = [np.flatnonzero(labels == label)[:5] for label in np.unique(labels)]
        images.sheet(f"{stem}-real.png", pictures[np.stack(some, 1).reshape(-1)])
    made = {
        "suite": "visual",
        "versions": outcome.versions(),
        "device": outcome.device(),
        "num_samples": num_samples,
        "classifier": {"heldout_accuracy": by.accuracy, "num_heldout": len(by.labels)},
        "training_images": best._asdict(),
        "lines": [each._asdict() for each in lines],
    }
    if out is not None:
        with files.replacing(out) as file:
            file.write(json.dumps(made, indent=1).encode() + b"\n")
    return made


def check(path: str) -> None:
    """ValueError, before anything is decoded, for a file that cannot be written."""
    if not path.endswith(".png"):
        raise ValueError(f"--out {path} must end in .png")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise ValueError(f"--out {path} lies in no folder: make it first")


def save(path: str, rows: list[list[int]]) -> None:
    """Writes generated pixels, a row of ids an image, as a PNG.

    ValueError for rows that are no whole images.
    """
    from pdecode.evals import images

    if any(len(row) != digits.SIDE**2 for row in rows):
        raise ValueError(f"--out {path}: what was generated is no whole image")
    images.sheet(path, digits.pictures(rows), columns=min(10, len(rows)), scale=16)
