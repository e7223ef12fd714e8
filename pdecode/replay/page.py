"""The replay as one HTML page: nothing is fetched, nothing is left behind."""

import html
import json
import pathlib

from pdecode import files
from pdecode.replay.record import Replay

FOLDER = pathlib.Path(__file__).parent
FRAME_HEIGHT = 560  # pixels, in a notebook


def page(replay: Replay) -> str:
    """The whole page as text."""
    data = {
        "title": replay.title,
        "prompts": replay.prompts,
        "runs": [
            {**run._asdict(), "traces": [each._asdict() for each in run.traces]}
            for run in replay.runs
        ],
    }
    # "</script>" in a text must not end the script.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028")
    parts = {name: (FOLDER / name).read_text() for name in ("page.css", "page.js")}
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(replay.title)}</title>\n"
        f"<style>\n{parts['page.css']}</style>\n</head>\n<body>\n"
        f'<script type="application/json" id="data">{text}</script>\n'
        f"<script>\n{parts['page.js']}</script>\n</body>\n</html>\n"
    )


def frame(replay: Replay) -> str:
    """The page inside a frame, for the output of a notebook's cell."""
    inner = html.escape(page(replay), quote=True)
    return (
        f'<iframe srcdoc="{inner}" style="width:100%;height:{FRAME_HEIGHT}px;border:0" '
        f'title="{html.escape(replay.title)}"></iframe>'
    )


def write(replay: Replay, path: str) -> None:
    """Writes the page; a reader never sees half of it."""
    with files.replacing(pathlib.Path(path)) as file:
        file.write(page(replay).encode())
