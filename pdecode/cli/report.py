"""A comparison as a table that grows, a JSON file, a plot, and two plain sentences."""

import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax

from pdecode import __version__, files
from pdecode.evals import tasks
from pdecode.evals.compare import Context, Finished, Row
from pdecode.hardware.roofline import WIDTHS

# Near-lossless: bits per byte within this factor of the greedy text's own, or of the
# held-out text's, whichever allows more; and no worse at the task by more than this.
BITS_ALLOWANCE, MATCH_ALLOWANCE = 1.1, 0.1

# Heading (two lines), width, and the cell's text.
_COLUMNS = (
    ("", "method", 20, lambda r: r.name),
    ("", "guarantee", 9, lambda r: r.guarantee),
    ("tokens", "/call", 6, lambda r: _number(r.tokens_per_call, 2)),
    ("calls", "/row", 5, lambda r: _number(r.calls_per_row, 1)),
    ("queries/token", "asked/comp.", 13, lambda r: _queries(r)),
    ("mean", "accept", 6, lambda r: _number(r.mean_accepted, 2)),
    ("tokens", "/s", 6, lambda r: _number(r.tokens_per_s, 0)),
    ("times", "AR", 5, lambda r: _number(r.ratio, 2)),
    ("comp.", "s", 6, lambda r: _number(r.compile_s, 1) + "*" * (r.num_cached == 2)),
    ("identical", "to greedy", 22, lambda r: r.identical or "-"),
    ("bits", "/byte", 5, lambda r: _number(r.bits_per_byte, 2)),
    ("dist.", "4", 5, lambda r: _number(r.distinct_4, 2)),
    ("exact", "match", 5, lambda r: _number(r.exact_match, 2)),
)
WIDTH = sum(width for _, _, width, _ in _COLUMNS) + 2 * (len(_COLUMNS) - 1)


class Table:
    """Prints rows as they come: redrawn in place on a terminal, else line by line."""

    def __init__(self, file=None):
        self.file = file or sys.stdout
        self.rows: list[Row] = []
        self._live = None
        self._status = ""

    def __enter__(self) -> "Table":
        if self.file.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.file)
            # A line that wraps could not be redrawn in place.
            if console.width >= WIDTH:
                self._live = Live(console=console, refresh_per_second=4)
                self._live.__enter__()
                return self
        print("\n".join(_headings()), file=self.file, flush=True)
        return self

    def __exit__(self, *error) -> None:
        if self._live is not None:
            self._status = ""
            self._live.update(self._drawn(), refresh=True)
            self._live.__exit__(*error)

    def add(self, row: Row) -> None:
        """Shows one more row."""
        self.rows.append(row)
        if self._live is None:
            print(_line(row), file=self.file, flush=True)
        else:
            self._live.update(self._drawn())

    def status(self, text: str) -> None:
        """Says below the table what is being done; only on a terminal."""
        self._status = text
        if self._live is not None:
            self._live.update(self._drawn())

    def _drawn(self):
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        lines = [*_headings(), *map(_line, self.rows)]
        drawn = Text("\n".join(lines), no_wrap=True)
        if not self._status:
            return drawn
        return Group(drawn, Spinner("dots", text=self._status))


def footer(context: Context, finished: Finished, spent: dict[str, float]) -> str:
    """What stands below the table, the two closing sentences last."""
    settings, rows, lines = context.settings, finished.rows, [""]
    held, greedy = context.held_out, rows[0] if rows else None
    if held["bits_per_byte"] is not None and greedy is not None:
        lines += [
            f"bits per byte under the target: greedy text "
            f"{_number(greedy.bits_per_byte, 2)}, the held-out text itself "
            f"{held['bits_per_byte']:.2f} (its distinct-4: "
            f"{_number(held['distinct_4'], 2)}).",
            "Below the greedy text's is no praise: repetition is cheap; read it with "
            "distinct-4.",
        ]
    lines += [
        f"exact match: {tasks.TASK}, the first word of each continuation "
        f"({settings.num_prompts} prompts).",
        "tokens are counted up to EOS; prefill, compiling and warm-up are apart. comp. "
        "*: from the cache on disk.",
    ]
    if rows:
        batches = settings.num_prompts // settings.batch_size
        seconds = sorted(row.prefill_s / batches for row in rows if row.prefill_s)
        first = 1e3 * rows[0].prefill_s / batches
        lines.append(
            f"prefill: {first:.1f} ms a batch of {settings.batch_size} prompts up to "
            f"{context.width} tokens ({1e3 * seconds[0]:.1f} to "
            f"{1e3 * seconds[-1]:.1f} over the methods)."
        )
    for row in rows:
        for kind, word in (("near_ties", "near-tie"), ("mismatches", "MISMATCH")):
            for event in row.differences[kind]:
                lines.append(
                    f"{word}: {row.name}, row {event['row']}, token {event['place']}, "
                    f"margin {event['margin']:.1e}"
                )
    lines += [f"note: {note}" for note in context.notes]
    if finished.curve is not None:
        lines += ["", *_cost_lines(context, finished)]
    lines += [
        "",
        f"seconds: {spent.get('total', 0.0):.0f} in all "
        f"({spent.get('processor', 0.0):.0f} of processor time); compiling "
        f"{spent.get('compile', 0.0):.0f} (two at a time, {spent.get('wait', 0.0):.0f} "
        f"waited for), timing {spent.get('timing', 0.0):.0f}, judging "
        f"{spent.get('judging', 0.0):.0f}, cost curve {spent.get('curve', 0.0):.0f}.",
        "",
        *closing(context, rows),
    ]
    return "\n".join(lines)


def closing(context: Context, rows: Sequence[Row]) -> list[str]:
    """The best lossless and near-lossless methods here, and the command to try next."""
    if not rows:
        return ["Nothing was measured."]
    lossless = [
        row
        for row in rows[1:]
        if row.guarantee == "lossless" and not row.differences["mismatches"]
    ]
    best = max(lossless, key=lambda row: row.ratio, default=None)
    lines = []
    if best is None:
        lines.append("No lossless method beside the baseline was measured.")
    elif best.ratio <= 1:
        lines.append(
            f"Best lossless method here: {rows[0].name} itself; the next, {best.name}, "
            f"reaches {best.ratio:.2f} of its speed."
        )
        best = rows[0]
    else:
        lines.append(
            f"Best lossless method here: {best.name}, {best.ratio:.2f} times the "
            f"baseline at {best.tokens_per_call:.2f} tokens a call."
        )
    lossy = [row for row in rows if row.guarantee != "lossless"]
    near = [row for row in lossy if is_near_lossless(context, row, rows[0])]
    found = max(near, key=lambda row: row.ratio, default=None)
    rule = (
        f"bits per byte within {BITS_ALLOWANCE - 1:.0%} of the greedy or held-out "
        f"text's and exact match within {MATCH_ALLOWANCE:.0%} of greedy's"
    )
    if found is None:
        lines.append(f"No lossy method was near-lossless here ({rule}).")
    else:
        lines.append(
            f"Best near-lossless method here ({rule}): {found.name}, {found.ratio:.2f} "
            f"times the baseline."
        )
    choice = found if found and (best is None or found.ratio > best.ratio) else best
    lines.append(f"Try next: {_command(context, choice or rows[0])}")
    return lines


def is_near_lossless(context: Context, row: Row, baseline: Row) -> bool:
    """By the rule above; False without a judge."""
    held_out = context.held_out["bits_per_byte"]
    bits, best = row.bits_per_byte, baseline.bits_per_byte
    if bits is None or best is None or held_out is None:
        return False
    is_close = row.exact_match >= baseline.exact_match - MATCH_ALLOWANCE
    return bits <= BITS_ALLOWANCE * max(best, held_out) and is_close


def document(
    context: Context,
    finished: Finished,
    spent: dict[str, float],
    *,
    is_complete: bool,
) -> dict[str, Any]:
    """Everything measured, as plain data."""
    rows, curve, drafter_s, machine = finished
    return {
        "is_complete": is_complete,
        "settings": context.settings._asdict(),
        "versions": versions(),
        "device": device(),
        "prompts": [each._asdict() for each in context.completions],
        "task": tasks.TASK,
        "held_out": context.held_out,
        "rows": [row._asdict() for row in rows],
        "call_seconds": None
        if curve is None
        else {
            **{str(w): s for w, s in zip(curve.widths, curve.seconds)},
            "drafter": drafter_s,
        },
        "hardware": None if machine is None else machine._asdict(),
        "seconds": spent,
        "notes": context.notes,
    }


def write(folder: str | os.PathLike, made: dict[str, Any]) -> list[pathlib.Path]:
    """compare.json and compare.png in `folder`; the paths written."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "compare.json"
    text = json.dumps(made, indent=1) + "\n"
    with files.replacing(data) as file:
        file.write(text.encode())
    return [data, *plot(made, folder / "compare.png")]


def plot(made: dict[str, Any], path: pathlib.Path) -> list[pathlib.Path]:
    """Bits per byte against tokens a call; nothing if there was no judge."""
    rows = [row for row in made["rows"] if row["bits_per_byte"] is not None]
    if not rows:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for guarantee, marker in (("lossless", "o"), ("lossy", "s")):
        some = [row for row in rows if row["guarantee"] == guarantee]
        places = [(row["tokens_per_call"], row["bits_per_byte"]) for row in some]
        if places:
            axes.scatter(*zip(*places), marker=marker, label=guarantee)
    for names, place in _together(rows):
        axes.annotate(
            "\n".join(names), place, xytext=(4, 4), textcoords="offset points", size=7
        )
    axes.margins(x=0.12, y=0.1)
    held_out = made["held_out"]["bits_per_byte"]
    if held_out is not None:
        axes.axhline(held_out, ls="--", lw=1, color="grey", label="held-out text")
    axes.set_xlabel("tokens per call")
    axes.set_ylabel("bits per byte under the target (lower is likelier)")
    axes.legend()
    figure.savefig(path, dpi=150)
    return [path]


def _together(rows: Sequence[dict[str, Any]]) -> list[tuple[list[str], tuple]]:
    """Names that share one label, and its place: points too near to be told apart.

    The names of a label stand as their points do, the highest first.
    """
    rows = sorted(rows, key=lambda row: -row["bits_per_byte"])
    places = [(row["tokens_per_call"], row["bits_per_byte"]) for row in rows]
    wide, high = (max(max(axis) - min(axis), 1e-9) for axis in zip(*places))
    found: list[tuple[list[str], tuple]] = []
    for row, (x, y) in zip(rows, places):
        for names, (left, low) in found:
            if abs(x - left) < 0.06 * wide and abs(y - low) < 0.05 * high:
                names.append(row["name"])
                break
        else:
            found.append(([row["name"]], (x, y)))
    return found


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


def _cost_lines(context: Context, finished: Finished) -> list[str]:
    rows, curve, _, machine = finished
    assert curve is not None and machine is not None, "`finish` measured both"
    batch = context.settings.batch_size
    one = curve.at(1)
    relative = ", ".join(f"{w}: {curve.at(w) / one:.2f}" for w in WIDTHS)
    wide = curve.widths[-1]
    lines = [
        f"A call of W queries over a call of one, here, batch {batch}: {relative}, "
        f"whole canvas of {wide}: {curve.at(wide) / one:.1f} "
        f"(one query: {1e3 * one:.2f} ms).",
        f"Predicted: tokens a call over the cost of its calls, drafter included. "
        f"{machine.name}: {machine.about}; {machine.num_params / 1e9:.3g} billion "
        f"parameters of {machine.bytes_per_param} bytes; a call takes the longer of "
        "reading weights and cache once and of 2 operations a weight and query.",
        "",
        f"{'method':20}  {'measured':>8}  {'predicted here':>14}  "
        f"{'predicted ' + machine.name:>14}",
    ]
    lines += [
        f"{row.name:20}  {row.ratio:8.2f}  {_number(row.predicted_here, 2):>14}  "
        f"{_number(row.predicted_there, 2):>14}"
        for row in rows
    ]
    return lines


def _headings() -> list[str]:
    lines = []
    for part in (0, 1):
        cells = [
            f"{column[part]:{'<' if i < 2 else '>'}{column[2]}}"
            for i, column in enumerate(_COLUMNS)
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, "-" * WIDTH]


def _line(row: Row) -> str:
    cells = [
        f"{cell(row):{'<' if i < 2 else '>'}{width}}"
        for i, (_, _, width, cell) in enumerate(_COLUMNS)
    ]
    return "  ".join(cells).rstrip()


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _queries(row: Row) -> str:
    return f"{row.queries_per_token:.1f}/{row.queries_per_token_computed:.1f}"


def _command(context: Context, row: Row) -> str:
    chosen = [
        f"--set {name}={_spelled(value)}"
        for name, value in row.settings.items()
        if value is not None
    ]
    model = context.settings.model
    return " ".join(
        [
            "pdecode generate",
            *([f"--model {model}"] if model else []),
            f"--method {row.name}",
            *chosen,
            "--prompt 'def fib(n):' --max-new-tokens 128 --watch",
        ]
    )


def _spelled(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
