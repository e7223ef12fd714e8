"""Orders of images on trained models: what fewer calls cost.

`pdecode bench --suite visual`: every entry draws the same classes of handwritten
digits; a classifier trained on the real ones judges them (`evals.images`).
"""

import statistics
from typing import Any, NamedTuple

import numpy as np

from pdecode import generation, knobs
from pdecode.data import digits as data
from pdecode.evals import images
from pdecode.models import digits

NUM_PIXELS = digits.SIDE**2
BATCH = 100


class Entry(NamedTuple):
    """One line of the table."""

    name: str
    method: str
    model: str
    settings: dict[str, Any]


class Line(NamedTuple):
    """What an entry reached."""

    name: str
    model: str
    guarantee: str
    calls: float  # an image, prefill apart
    tokens_per_call: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    frechet: float
    frechet_interval: tuple[float, float]
    coverage: list[float]  # by class


_GRID = {"row_length": digits.SIDE}


def _entry(label: str, method: str, kind: str, **settings: Any) -> Entry:
    return Entry(label, method, f"digits_{kind}", settings)


# Two entries of one method differ in how many calls they make.
ENTRIES = (
    _entry("autoregressive", "autoregressive", "raster", temperature=1.0),
    _entry("autoregressive 2d", "autoregressive", "raster2d", temperature=1.0),
    _entry("sjd uniform", "sjd", "raster", window=16),
    _entry("sjd left", "sjd", "raster", window=16, start="horizontal", **_GRID),
    _entry("sjd above", "sjd", "raster", window=16, start="vertical", **_GRID),
    _entry("gsd", "gsd", "raster", window=16),
    _entry("zipar 4", "zipar", "raster", window=4, **_GRID),
    _entry("zipar 1", "zipar", "raster", window=1, **_GRID),
    _entry("random one by one", "any_order", "order"),
    _entry("halton 16", "any_order", "order", order="halton", steps=16, **_GRID),
    _entry("diagonals", "any_order", "order", order="diagonal", **_GRID),
    _entry("doubling grids", "any_order", "order", order="hierarchical", **_GRID),
    _entry("arpg 16", "arpg", "order", steps=16),
    _entry("arpg 8", "arpg", "order", steps=8),
    _entry("arpg 16 guided", "arpg", "order", steps=16, guidance_scale=2.0),
    _entry("lpd 8", "lpd", "order", steps=8, **_GRID),
    _entry("lpd 8 guided", "lpd", "order", steps=8, guidance_scale=2.0, **_GRID),
    _entry("mask random one by one", "llada", "masked", order="random",
           temperature=1.0),
    _entry("mask one by one guided", "llada", "masked", order="random",
           temperature=1.0, cfg_scale=1.0),
    _entry("maskgit 16", "maskgit", "masked", steps=16),
    _entry("maskgit 8", "maskgit", "masked", steps=8),
    _entry("mask halton 8", "halton", "masked", steps=8, **_GRID),
)  # fmt: skip


def judge(data_dir: str | None = None) -> images.Judge:
    """The classifier; ValueError without scikit-learn."""
    return images.judge(
        data.images("train", data_dir), data.images("heldout", data_dir)
    )


class Drawn(NamedTuple):
    """Images of an entry."""

    images: np.ndarray  # uint8 [N, 8, 8]
    classes: np.ndarray  # int [N]  that were asked for
    calls: list[int]  # by image, prefill apart
    guarantee: str


def draw(entry: Entry, num_samples: int, seed: int = 0) -> Drawn:
    """`num_samples` images, their classes in turn."""
    classes = np.arange(num_samples) % digits.NUM_CLASSES
    job = generation.prepare(
        [[digits.FIRST_CLASS + int(label)] for label in classes],
        method=entry.method,
        model=entry.model,
        max_new_tokens=NUM_PIXELS,
        **entry.settings,
    )
    traced, sizes = knobs.split(job.method, job.settings)
    guarantee = job.method(*job.models, **sizes, **traced).guarantee
    tokens, calls = [], []
    for part in generation.slices(job, BATCH):
        made = generation.decoded(part, seed=seed)
        tokens += made.tokens
        calls += made.stats["calls"]
    return Drawn(digits.pictures(tokens), classes, calls, guarantee)


def line(entry: Entry, by: images.Judge, made: Drawn) -> Line:
    """The figures of what was drawn."""
    calls = statistics.fmean(made.calls)
    found = images.worth(by, made.images, made.classes)
    return Line(
        entry.name,
        entry.model,
        made.guarantee,
        calls,
        NUM_PIXELS / calls,
        **found._asdict(),
    )


def real(by: images.Judge, data_dir: str | None = None) -> images.Worth:
    """Figures of the real training images: what nothing drawn should surpass by far."""
    return images.worth(by, *data.images("train", data_dir))


def table(lines: list[Line], by: images.Judge, best: images.Worth) -> str:
    """The lines under one head, and what they are to be compared with."""
    head = ("", "model", "guarantee", "calls", "tokens/call", "class right", "",
            "Frechet", "", "coverage")  # fmt: skip
    rows = [head, *(_cells(each) for each in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = ["  ".join(f"{c:{w}}" for c, w in zip(row, widths)).rstrip() for row in rows]
    text += [
        "",
        f"classifier: {by.accuracy:.1%} of {len(by.labels)} held-out images right",
        f"training images: {best.accuracy:.1%} right, Frechet {best.frechet:.2f}, "
        f"coverage {statistics.fmean(best.coverage):.2f}",
    ]
    return "\n".join(text)


def _cells(each: Line) -> tuple[str, ...]:
    low, high = each.accuracy_interval
    near, far = each.frechet_interval
    return (
        each.name,
        each.model.removeprefix("digits_"),
        each.guarantee,
        f"{each.calls:.1f}",
        f"{each.tokens_per_call:.2f}",
        f"{each.accuracy:.1%}",
        f"[{low:.1%}, {high:.1%}]",
        f"{each.frechet:.2f}",
        f"[{near:.2f}, {far:.2f}]",
        f"{statistics.fmean(each.coverage):.2f}",
    )


def plot(lines: list[Line], best: images.Worth, path: str) -> None:
    """Accuracy and Frechet distance against calls, with their intervals, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    markers = {
        "digits_raster": "o", "digits_raster2d": "^", "digits_order": "D",
        "digits_masked": "s",
    }  # fmt: skip
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "frechet")):
        for model, marker in markers.items():
            some = [each for each in lines if each.model == model]
            if not some:
                continue
            places = [each.calls for each in some]
            values = [getattr(each, name) for each in some]
            ends = np.array([getattr(each, f"{name}_interval") for each in some]).T
            gaps = np.abs(ends - np.array(values)[None])
            axes.errorbar(places, values, gaps, fmt=marker, ms=5, lw=1, label=model)
            for each, x, y in zip(some, places, values):
                axes.annotate(each.name, (x, y), xytext=(4, 4), size=7,
                              textcoords="offset points")  # fmt: skip
        axes.axhline(getattr(best, name), ls="--", lw=1, color="grey")
        axes.set_xscale("log", base=2)
        axes.margins(x=0.2)
        axes.set_xlabel("calls an image")
        axes.set_ylabel(
            "share whose class is recognised"
            if name == "accuracy"
            else "Fréchet distance to held-out images"
        )
    figure.axes[0].legend(loc="lower center")
    figure.savefig(path, dpi=130)
