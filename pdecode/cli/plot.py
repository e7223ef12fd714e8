"""The comparison's picture: what text is worth, against calls and against time."""

import pathlib
from collections.abc import Sequence
from typing import Any

_MARKERS = {"lossless": "o", "exact": "D", "lossy": "s"}


def plot(made: dict[str, Any], path: pathlib.Path) -> list[pathlib.Path]:
    """Bits per byte against tokens a call, and against times the first method's speed.

    `made` is `outcome.document`'s. Nothing if there was no judge.
    """
    rows = [row for row in made["rows"] if row["bits_per_byte"] is not None]
    if not rows:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = made["rows"][0]["name"]
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, rows, "tokens_per_call", made["held_out"]["bits_per_byte"])
    left.set_xlabel("tokens per call")
    left.set_ylabel(f"bits per byte under {made['judge']} (lower is likelier)")
    _panel(right, rows, "ratio", made["held_out"]["bits_per_byte"])
    for row in rows:
        low, high = row["ratio_half"]
        height = row["bits_per_byte"]
        right.plot((low, high), (height, height), lw=1, color="grey", zorder=0)
    right.axvline(1.0, ls=":", lw=1, color="grey")
    right.set_xlabel(f"speed over {first}'s (line: middle half)")
    left.legend(loc="upper left")
    figure.suptitle(title(made))
    figure.savefig(path, dpi=130)
    return [path]


def title(made: dict[str, Any]) -> str:
    """Model, device and size of a comparison on one line."""
    settings, device = made["settings"], made["device"]
    models = sorted({names[0] for names in made["models"].values()})
    return (
        f"{', '.join(models)} on {device['kind']} ({device['count']}), batch "
        f"{settings['batch_size']}, {settings['num_prompts']} prompts, "
        f"{settings['max_new_tokens']} new tokens"
    )


def drafting(lines: Sequence[Any], path: pathlib.Path) -> pathlib.Path:
    """Accepted length and speed by draft size: lines of `evals.bench.speculative`.

    A column a batch size and temperature; a bar is the interval of the accepted length.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = sorted({(each.batch_size, each.temperature) for each in lines})
    figure = Figure(figsize=(5 * len(places), 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(places), squeeze=False)
    for column, place in enumerate(places):
        top, bottom = grid[:, column]
        here = [each for each in lines if (each.batch_size, each.temperature) == place]
        for name in dict.fromkeys(each.name for each in here):
            some = sorted((e for e in here if e.name == name), key=lambda e: e.size)
            sizes = [each.size for each in some]
            means = [each.accepted for each in some]
            spread = [
                [max(each.accepted - each.accepted_low, 0) for each in some],
                [max(each.accepted_high - each.accepted, 0) for each in some],
            ]
            top.errorbar(sizes, means, spread, marker="o", lw=1, capsize=2, label=name)
            bottom.plot(sizes, [each.ratio for each in some], marker="o", lw=1)
        top.set_title(f"batch {place[0]}, temperature {place[1]}")
        top.set_ylabel("drafted tokens kept a call")
        bottom.axhline(1.0, ls=":", lw=1, color="grey")
        bottom.set_ylabel("speed over autoregressive decoding's")
        bottom.set_xlabel("draft nodes")
    grid[0, 0].legend(loc="upper left", fontsize=7)
    figure.savefig(path, dpi=130)
    return path


def _panel(axes: Any, rows: Sequence[dict], name: str, held_out: float | None) -> None:
    for guarantee, marker in _MARKERS.items():
        some = [row for row in rows if row["guarantee"] == guarantee]
        places = [(row[name], row["bits_per_byte"]) for row in some]
        if places:
            axes.scatter(*zip(*places), marker=marker, label=guarantee)
    for names, place in together(rows, name):
        axes.annotate(
            "\n".join(names), place, xytext=(4, 4), textcoords="offset points", size=7
        )
    axes.margins(x=0.15, y=0.1)
    if held_out is not None:
        axes.axhline(held_out, ls="--", lw=1, color="grey", label="held-out text")


def together(
    rows: Sequence[dict[str, Any]], name: str
) -> list[tuple[list[str], tuple]]:
    """Names that share one label, and its place: points too near to be told apart.

    The names of a label stand as their points do, the highest first.
    """
    rows = sorted(rows, key=lambda row: -row["bits_per_byte"])
    places = [(row[name], row["bits_per_byte"]) for row in rows]
    wide, high = (max(max(axis) - min(axis), 1e-9) for axis in zip(*places))
    found: list[tuple[list[str], tuple]] = []
    for row, (x, y) in zip(rows, places):
        label = row["name"].rpartition(":")[2]
        for labels, (left, low) in found:
            if abs(x - left) < 0.06 * wide and abs(y - low) < 0.05 * high:
                labels.append(label)
                break
        else:
            found.append(([label], (x, y)))
    return found
