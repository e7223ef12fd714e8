"""A decode seen step by step: the canvas fills in place on a terminal.

The steps run from the host, which is slower than the compiled loop and gives the same
tokens.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np

from pdecode import decode, generation, knobs, programs, rng
from pdecode.contracts import Generation

OPEN = "░"  # a position not committed yet


def watch(
    job: generation.Job,
    *,
    seed: int = 0,
    keep_eos_tail: bool = False,
    file: TextIO | None = None,
) -> generation.Result:
    """Decodes `job` and shows every step in `file` (default: standard output).

    Redrawn in place on a terminal, one line a row and step elsewhere.
    """
    file = file or sys.stdout
    traced, sizes = knobs.split(job.method, job.settings)
    decoder = job.method(*job.models, **sizes, **traced)
    steps: Iterator[tuple[Any, decode.Stats]] = decode.stream(
        decoder, job.params, job.prompt, rng.key(seed)
    )
    began, last = time.perf_counter(), None
    with _shown(file) as show, programs.on(job.mesh):
        for number, last in enumerate(steps, 1):
            show(number, [drawn(job, last[0], b) for b in range(len(last[0].start))])
    timing = {
        "compile_s": 0.0,  # not told apart here: the first step compiles
        "prefill_s": 0.0,
        "decode_s": round(time.perf_counter() - began, 6),
    }
    if last is None:
        raise ValueError("nothing to decode: every row was done at the start")
    return generation.result_of(job, *last, timing, keep_eos_tail=keep_eos_tail)


def drawn(job: generation.Job, made: Generation, row: int) -> str:
    """A row's generation as text, with a mark for every open position."""
    first = int(made.start[row])
    most = min(int(job.prompt.max_new[row]), job.settings["max_new_tokens"])
    tokens = np.asarray(made.tokens[row, first : first + most])
    committed = np.asarray(made.committed[row, first : first + most])
    ends = np.flatnonzero(committed & np.isin(tokens, job.models[0].eos_ids))
    if ends.size:
        tokens = tokens[: ends[0]]
    text, run = [], []
    for token, is_committed in zip(tokens.tolist(), committed):
        if is_committed:
            run.append(token)
        else:
            text += [job.tokenizer.decode(run), OPEN]
            run = []
    return "".join([*text, job.tokenizer.decode(run)])


@contextlib.contextmanager
def _shown(file: TextIO) -> Iterator[Callable[[int, list[str]], None]]:
    """A function that shows (step, text of every row) in `file`."""
    if not file.isatty():

        def lines(number: int, rows: list[str]) -> None:
            for index, row in enumerate(rows):
                print(f"step {number} row {index}: {row!r}", file=file, flush=True)

        yield lines
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=file), auto_refresh=False, transient=True) as live:
        yield lambda number, rows: live.update(_screen(rows, number), refresh=True)


def _screen(rows: list[str], number: int):
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    panels = [Panel(Text(row), title=f"row {b}") for b, row in enumerate(rows)]
    return Group(*panels, Text(f"step {number}"))
