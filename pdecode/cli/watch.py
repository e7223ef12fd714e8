"""A decode seen step by step: the canvas fills in place on a terminal.

The steps are those of the program that `generate` runs, stopped after every one.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np

from pdecode import generation, programs, rng, sharding
from pdecode.contracts import Generation
from pdecode.results import Result, result_of

OPEN = "░"  # a position not committed yet
_STYLES = {"old": "", "new": "bold green", "open": "dim", "prompt": "dim"}


class Frame(NamedTuple):
    """What one step shows."""

    number: int
    rows: list[list[tuple[str, str]]]  # (text, "old" | "new" | "open") of every row
    status: str


def watch(
    job: generation.Job,
    *,
    seed: int = 0,
    keep_eos_tail: bool = False,
    file: TextIO | None = None,
    progress: TextIO | None = None,
    pace: float = 0.0,
) -> Result:
    """Decodes `job` and shows every step in `file` (default: standard output).

    Redrawn in place on a terminal, where the last step stays; one line a row and step
    elsewhere. `progress` (default: standard error) hears what is compiled and, where
    there is no terminal, the prompts. A step is shown for `pace` seconds at least.
    """
    file, progress = file or sys.stdout, progress or sys.stderr
    prompts = [_prompt(job, b) for b in range(len(job.row_ids))]
    with compiling(job, progress):
        made = generation.compiled(job)
    key = rng.key(seed)
    if job.mesh is not None:
        key = sharding.replicate(key, job.mesh)
    began, last, before = time.perf_counter(), None, None
    with _shown(file, progress, prompts) as show, programs.on(job.mesh):
        for number, last in enumerate(
            programs.steps(made, job.params, job.prompt, key), 1
        ):
            shown = time.perf_counter()
            show(Frame(number, *_frame(job, number, last, before)))
            before = last.generation
            time.sleep(max(0.0, pace - (time.perf_counter() - shown)))
    timing = {
        "compile_s": round(made.compile_s, 6),
        "prefill_s": 0.0,  # not told apart here
        "decode_s": round(time.perf_counter() - began, 6),
    }
    assert last is not None, "a prompt asks for a token at least"
    return result_of(
        job, last.generation, last.stats, timing, last.commit_step,
        keep_eos_tail=keep_eos_tail,
    )  # fmt: skip


@contextlib.contextmanager
def compiling(job: generation.Job, file: TextIO) -> Iterator[None]:
    """Says in `file` that `job` is being compiled, and how long it takes."""
    what = f"compiling {job.method_name} for {job.model_name}"
    if not file.isatty():
        began = time.perf_counter()
        print(f"{what} ...", file=file, flush=True)
        yield
        print(f"compiled in {time.perf_counter() - began:.1f} s", file=file, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=file), transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def drawn(job: generation.Job, made: Generation, row: int) -> str:
    """A row's generation as text, with a mark for every open position."""
    return "".join(text for text, _ in parts(job, made, row, None))


def parts(
    job: generation.Job, made: Generation, row: int, before: Generation | None
) -> list[tuple[str, str]]:
    """`drawn` in pieces: what was there in `before`, what is new, what is open."""
    first = int(made.start[row])
    most = min(int(job.prompt.max_new_tokens[row]), job.settings["max_new_tokens"])
    here = slice(first, first + most)
    tokens = np.asarray(made.tokens[row, here])
    committed = np.asarray(made.committed[row, here])
    is_old = committed
    if before is not None:
        is_old = np.asarray(before.committed[row, here])
        is_old = is_old & (np.asarray(before.tokens[row, here]) == tokens)
    ends = np.flatnonzero(committed & np.isin(tokens, job.models[0].eos_ids))
    if ends.size:
        tokens = tokens[: ends[0]]
    if hasattr(job.tokenizer, "pixel"):
        return _pixels(job.tokenizer, tokens, committed, is_old)
    found: list[tuple[list[int], str]] = []
    for token, is_there, was_there in zip(tokens.tolist(), committed, is_old):
        kind = "open" if not is_there else "old" if was_there else "new"
        if not found or found[-1][1] != kind:
            found.append(([], kind))
        found[-1][0].append(token)
    return [
        (OPEN * len(ids) if kind == "open" else job.tokenizer.decode(ids), kind)
        for ids, kind in found
    ]


def _pixels(tokenizer, tokens, committed, is_old) -> list[tuple[str, str]]:
    """`parts` of an image: two characters a pixel, a line a row."""
    found = []
    for place, token in enumerate(tokens.tolist()):
        kind = "open" if not committed[place] else "old" if is_old[place] else "new"
        drawn = tokenizer.pixel(token) if committed[place] else 2 * OPEN
        ends = (place + 1) % tokenizer.row_length == 0 and place + 1 < len(tokens)
        found.append((drawn + "\n" * ends, kind))
    return found


def _frame(job: generation.Job, number: int, made: programs.Progress, before):
    rows = range(len(job.row_ids))
    calls = int(made.stats.num_calls.sum())
    tokens = int(made.stats.num_committed.sum())
    status = (
        f"step {number}: {calls} calls, {tokens} tokens, "
        f"{tokens / max(calls, 1):.2f} tokens a call"
    )
    if before is None:
        committed = made.generation.committed
        before = made.generation._replace(committed=committed & False)
    return [parts(job, made.generation, b, before) for b in rows], status


def _prompt(job: generation.Job, row: int) -> str:
    length = int(job.prompt.lengths[row])
    return job.tokenizer.decode(np.asarray(job.prompt.tokens[row, :length]).tolist())


@contextlib.contextmanager
def _shown(
    file: TextIO, progress: TextIO, prompts: list[str]
) -> Iterator[Callable[[Frame], None]]:
    """A function that shows a frame in `file`."""
    if not file.isatty():
        for index, prompt in enumerate(prompts):
            print(f"row {index} prompt: {prompt!r}", file=progress, flush=True)

        def lines(frame: Frame) -> None:
            for index, row in enumerate(frame.rows):
                text = "".join(part for part, _ in row)
                print(f"step {frame.number} row {index}: {text!r}", file=file)
            file.flush()

        yield lines
        return
    from rich.console import Console
    from rich.live import Live

    # The last canvas stays on the screen, all of it.
    with Live(console=Console(file=file), auto_refresh=False) as live:

        def draw(frame: Frame) -> None:
            live.update(_screen(prompts, frame), refresh=True)

        yield draw
        live.vertical_overflow = "visible"


def _screen(prompts: list[str], frame: Frame) -> Any:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    panels = []
    for index, (prompt, row) in enumerate(zip(prompts, frame.rows)):
        text = Text.assemble(
            (prompt, _STYLES["prompt"]), *((part, _STYLES[kind]) for part, kind in row)
        )
        panels.append(Panel(text, title=f"row {index}"))
    return Group(*panels, Text(frame.status))
