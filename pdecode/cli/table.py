"""The comparison's table: wide, narrow enough for 80 columns, or as Markdown."""

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pdecode.evals.rows import Row


class Column(NamedTuple):
    """One column: its heading in two lines, its width, the text of a cell."""

    above: str
    below: str
    width: int
    cell: Callable[[Row], str]


def number(value: float | None, digits: int) -> str:
    """`value` with so many digits; "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def _name(row: Row) -> str:
    # What ended in no number is marked; the lines below the table say so.
    return row.name.rpartition(":")[2] + " !" * (row.num_not_finite > 0)


def _asked(row: Row) -> str:
    return f"{row.queries_per_token:.1f}/{row.queries_per_token_computed:.1f}"


def _drafter(row: Row) -> str:
    if not row.drafter_calls:
        return "-"
    lanes = f"{row.drafter_queries:.1f}/{row.drafter_queries_computed:.1f}"
    return f"{row.drafter_calls:.1f} {lanes}"


def _half(row: Row) -> str:
    # Four characters each.
    return "-".join(number(each, 2 if each < 10 else 1) for each in row.ratio_half)


def _identical(row: Row) -> str:
    wrong, near = (len(row.differences[x]) for x in ("mismatches", "near_ties"))
    if row.identical is None:
        return "-"
    ties = f"yes, {near} tie{'s' if near > 1 else ''}" if near else "yes"
    return f"NO, {wrong} row{'s' if wrong > 1 else ''}" if wrong else ties


def _identical_short(row: Row) -> str:
    return _identical(row).partition(",")[0]


def _compiled(row: Row) -> str:
    return number(row.compile_s, 1) + "*" * (row.num_cached == 2)


def columns(first: str, *, is_narrow: bool = False) -> tuple[Column, ...]:
    """The columns; `first` is the method that times are relative to."""
    relative = "AR" if first == "autoregressive" else first.rpartition(":")[2][:8]
    name = Column("", "method", 20, _name)
    guarantee = Column("", "guarantee", 9, lambda r: r.guarantee)
    per_call = Column("tokens", "/call", 6, lambda r: number(r.tokens_per_call, 2))
    times = Column(
        "times", relative, max(5, len(relative)), lambda r: number(r.ratio, 2)
    )
    half = Column("middle", "half", 9, _half)
    bits = Column("bits", "/byte", 5, lambda r: number(r.bits_per_byte, 2))
    distinct = Column("dist.", "4", 5, lambda r: number(r.distinct_4, 2))
    blank = Column("white", "space", 5, lambda r: number(r.white_space, 2))
    if is_narrow:
        same = Column("", "same", 4, _identical_short)
        return (name, guarantee, per_call, times, half, same, bits, distinct)
    return (
        name,
        guarantee,
        per_call,
        Column("calls", "/row", 5, lambda r: number(r.calls_per_row, 1)),
        Column("queries/tok", "asked/comp.", 11, _asked),
        Column("drafter/call", "calls queries", 13, _drafter),
        Column("tokens", "/s", 6, lambda r: number(r.tokens_per_s, 0)),
        times,
        half,
        Column("comp.", "s", 6, _compiled),
        Column("identical", "to greedy", 11, _identical),
        bits,
        distinct,
        blank,
        Column("exact", "match", 5, lambda r: number(r.exact_match, 2)),
    )


def headings(chosen: Sequence[Column]) -> list[str]:
    """Two lines and a rule."""
    lines = []
    for part in ("above", "below"):
        cells = [
            f"{getattr(column, part):{'<' if i < 2 else '>'}{column.width}}"
            for i, column in enumerate(chosen)
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, "-" * width(chosen)]


def line(chosen: Sequence[Column], row: Row) -> str:
    """One row."""
    cells = [
        f"{column.cell(row):{'<' if i < 2 else '>'}{column.width}}"
        for i, column in enumerate(chosen)
    ]
    return "  ".join(cells).rstrip()


def width(chosen: Sequence[Column]) -> int:
    return sum(column.width for column in chosen) + 2 * (len(chosen) - 1)


WIDTH = width(columns("autoregressive"))


def markdown(rows: Sequence[Row]) -> str:
    """All columns as a table of Markdown."""
    chosen = columns(rows[0].name if rows else "autoregressive")
    heads = [f"{each.above} {each.below}".strip() for each in chosen]
    lines = [heads, ["---" if i < 2 else "---:" for i in range(len(chosen))]]
    lines += [[column.cell(row) for column in chosen] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


class Table:
    """Prints rows as they come: redrawn in place on a terminal, else line by line.

    A terminal (or COLUMNS) with too few columns for all gets the narrow table. What is
    being done goes below the table, or to `progress` line by line.
    """

    def __init__(self, file=None, progress=None, first: str = "autoregressive"):
        self.file, self.progress = file or sys.stdout, progress or sys.stderr
        self.rows: list[Row] = []
        room = shutil.get_terminal_size((WIDTH, 24)).columns
        self.columns = columns(first)
        if room < width(self.columns):
            self.columns = columns(first, is_narrow=True)
        self.room, self._status = room, ""
        self._live: Any = None

    def __enter__(self) -> "Table":
        # A line that wraps could not be redrawn in place.
        if self.file.isatty() and self.room >= width(self.columns):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.file)
            self._live = Live(
                console=console, refresh_per_second=4, vertical_overflow="visible"
            )
            self._live.__enter__()
        else:
            print("\n".join(headings(self.columns)), file=self.file, flush=True)
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
            print(line(self.columns, row), file=self.file, flush=True)
        else:
            self._live.update(self._drawn())

    def status(self, text: str) -> None:
        """Says what is being done."""
        self._status = text
        if self._live is None:
            print(text, file=self.progress, flush=True)
        else:
            self._live.update(self._drawn())

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        lines = [
            *headings(self.columns), *(line(self.columns, row) for row in self.rows)
        ]  # fmt: skip
        drawn = Text("\n".join(lines), no_wrap=True)
        if not self._status:
            return drawn
        return Group(drawn, Spinner("dots", text=self._status))
