"""A benchmark beside an earlier one: which figures moved, line by line.

An earlier one is a file that `pdecode bench --out` wrote, or a history: JSONL, a run a
line, as `--history` appends them.
"""

import json
import pathlib
from typing import Any, NamedTuple

from pdecode import files


class Kind(NamedTuple):
    """What names a line of a suite, and the figures that are compared."""

    lines: str  # the key of the document that holds them
    names: tuple[str, ...]
    figures: tuple[str, ...]


_DRAFTING = ("name", "size", "batch_size", "temperature")
KINDS = {
    "loop": [Kind("cases", ("name", "batch_size"), ("ratio", "loop_ms"))],
    "hotpath": [
        Kind("decodes", ("case", "weights", "shape", "batch_size"), ("ms", "share")),
        Kind("lines", ("part", "shape", "what", "batch_size"), ("ms",)),
    ],
    "speculative": [Kind("lines", _DRAFTING, ("accepted", "target_calls", "ratio"))],
    "visual": [Kind("lines", ("name", "model"), ("calls", "accuracy", "frechet"))],
}


def read(path: str, suite: str) -> dict[str, Any]:
    """The document of a file, of a history the last one of this suite.

    Raises ValueError, naming the file, for one that is missing, damaged or holds no run
    of the suite.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--against {path}: {error.strerror}") from None
    try:
        is_history = path.endswith(".jsonl")
        found = [json.loads(line) for line in text.splitlines()] if is_history else [
            json.loads(text)
        ]  # fmt: skip
    except ValueError as error:
        raise ValueError(f"--against {path} is damaged: {error}") from None
    ours = [e for e in found if isinstance(e, dict) and e.get("suite") == suite]
    if not ours:
        raise ValueError(f"--against {path} holds no run of the suite {suite}")
    return ours[-1]


def check(path: str) -> None:
    """ValueError for a history that could not be appended to."""
    if not path.endswith(".jsonl"):
        raise ValueError(f"--history {path} must end in .jsonl: it has a run a line")
    if not pathlib.Path(path).parent.is_dir():
        raise ValueError(f"--history {path} lies in no folder: make it first")


def append(path: str, made: dict[str, Any]) -> None:
    """A line more in a history, whole or not at all."""
    place = pathlib.Path(path)
    before = place.read_bytes() if place.is_file() else b""
    with files.replacing(place) as file:
        file.write(before + json.dumps(made).encode() + b"\n")


def table(made: dict[str, Any], before: dict[str, Any]) -> str:
    """Each shared line's figures before and now, and what only one of them has.

    Times of another device or version are shown all the same, with a line that says so.
    """
    lines = [
        f"{what}: {json.dumps(before.get(what))} > {json.dumps(made.get(what))}"
        for what in ("device", "versions", "precision", "dtype", "is_quick")
        if before.get(what) != made.get(what)
    ]
    if lines:
        lines += ["figures compare only where these are equal", ""]
    for kind in KINDS[made["suite"]]:
        lines += _lines(kind, made, before)
    return "\n".join(lines)


def _lines(kind: Kind, made: dict[str, Any], before: dict[str, Any]) -> list[str]:
    now, then = (_by_name(each, kind) for each in (made, before))
    if not now and not then:
        return []
    width = max(len(_label(name)) for name in (*now, *then))
    lines = [f"{'':{width}}  " + "  ".join(f"{f:>24}" for f in kind.figures)]
    for name, line in now.items():
        if name in then:
            told = (_moved(then[name].get(f), line.get(f)) for f in kind.figures)
            lines.append(f"{_label(name):{width}}  " + "  ".join(told))
    lines += [f"only now: {_label(name)}" for name in now if name not in then]
    lines += [f"only before: {_label(name)}" for name in then if name not in now]
    return lines


def _by_name(document: dict[str, Any], kind: Kind) -> dict[tuple, dict[str, Any]]:
    found = document.get(kind.lines, ())
    return {tuple(each.get(name) for name in kind.names): each for each in found}


def _label(name: tuple) -> str:
    return " ".join(str(each) for each in name)


def _moved(before: float | None, now: float | None) -> str:
    """ "1.05 > 1.02  -3 %", or what there is of it."""
    if before is None or now is None:
        return f"{'-':>24}"
    change = f"{100 * (now / before - 1):+6.1f} %" if before else ""
    return f"{before:7.3g} > {now:<6.3g}{change:>8}".rjust(24)
