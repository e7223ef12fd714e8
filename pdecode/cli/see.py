"""`pdecode view`, `--html` and `pdecode check`: what is seen of decodes and parts."""

import json
import os
import pathlib
import sys
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdecode.results import Result

FOUND_FAULTS = 1  # exit code


def view_options(made: Any) -> None:
    """The options of `pdecode view`."""
    made.add_argument("result", help="of generate --json, or compare.json")
    made.add_argument("--html", metavar="FILE", help="page (default: beside it)")
    made.add_argument("--grid", help="tokens are an image of HEIGHTxWIDTH")


def check_options(made: Any) -> None:
    """The options of `pdecode check`, but for --set."""
    made.add_argument("part", help="file.py:name, module:name or a method's name")
    made.add_argument(
        "--use", default="commit", choices=("commit", "remask", "edit"),
        help="what a Rule is used as",
    )  # fmt: skip
    made.add_argument("--json", action="store_true", help="one JSON object")


def view(args) -> int:
    """Writes the replay of a file of results, and opens it."""
    from pdecode.replay import page, record

    made = record.of_file(args.result, _grid(args.grid))
    path = args.html or str(pathlib.Path(args.result).with_suffix(".html"))
    check_writable(path)
    page.write(made, path)
    print(f"written: {path}")
    if args.html is None and sys.stdout.isatty():
        webbrowser.open(pathlib.Path(path).resolve().as_uri())
    return 0


def write(made: "Sequence[Result]", path: str) -> None:
    """The replay of results that one command made, batch after batch."""
    from pdecode.replay import page, record

    parts = [record.of_result(each) for each in made]
    prompts, traces = [], []
    for part in parts:
        run = part.runs[0]
        traces += [t._replace(prompt=t.prompt + len(prompts)) for t in run.traces]
        prompts += part.prompts
    run = parts[0].runs[0]._replace(traces=traces)
    page.write(parts[0]._replace(prompts=prompts, runs=[run]), path)
    print(f"written: {path}", file=sys.stderr)


def comparison(made: dict[str, Any], path: str) -> None:
    """The replay of a comparison's document."""
    from pdecode.replay import page, record

    page.write(record.of_comparison(json.loads(json.dumps(made))), path)


def check_writable(path: str) -> None:
    """Raises ValueError where a page can not be written, before anything is decoded."""
    folder = pathlib.Path(path).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"--html {path}: {folder} is no folder that can be written")
    if pathlib.Path(path).is_dir():
        raise ValueError(f"--html {path} is a folder: name a file in it")


def check(args) -> int:
    """Tries a part and says what it keeps; exit code 1 where something fails."""
    from pdecode.checks import api

    report = api.check(args.part, use=args.use, **_settings(args.set))
    print(json.dumps(report.asdict()) if args.json else report)
    return 0 if report.is_well else FOUND_FAULTS


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments of a part: numbers, true and false, or texts."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set {pair}: write NAME=VALUE")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
        if isinstance(found[name.strip()], list):
            found[name.strip()] = tuple(found[name.strip()])
    return found


def _grid(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "16x24"."""
    if text is None:
        return None
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--grid {text}: write HEIGHTxWIDTH, as 16x16") from None
    if min(height, width) < 1:
        raise ValueError(f"--grid {text}: both must be at least 1")
    return height, width
