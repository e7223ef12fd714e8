"""What any decoder must keep: it ends, rows are alone, one program serves all knobs."""

import os
import pathlib
import re
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import decode
from pdecode.checks import toys
from pdecode.checks.report import Finding, string
from pdecode.contracts import STOPPED_BY, Decoder, Generation

OURS = f"{pathlib.Path(__file__).parents[1]}{os.sep}"  # where frames are not a user's
NOT_TRACEABLE = jax.errors.JAXTypeError  # a number was wanted of what is traced


class Tried(NamedTuple):
    """A decoder as it is made: `build(**knobs)`, whose floats may be tracers."""

    build: Callable[..., Decoder]
    knobs: dict[str, float]
    params: dict[str, Any]


class Runs(NamedTuple):
    """Findings, and one decode of the toys' rows at the knobs as they were given."""

    findings: tuple[Finding, ...]
    generation: Generation
    stats: decode.Stats


def of(tried: Tried) -> Runs:
    """Runs `tried` on the toys: alone, permuted, in other company; traced again."""
    traced, retraces = _traced(tried)
    if retraces is not None:  # the rest is seen with its numbers fixed
        traced = _Program(tried._replace(build=_fixed(tried), knobs={}))
    generation, stats = traced(toys.ragged())
    ends = _ends(tried, generation, stats)
    alone = _alone(traced, generation, stats)
    one = retraces or _one_trace(tried, traced)
    return Runs((ends, alone, one), generation, stats)


class _Program:
    """The one program of a decoder; it counts its traces."""

    def __init__(self, tried: Tried):
        self.tried, self.num_traces = tried, 0

        def program(params, prompt, key, knobs):
            self.num_traces += 1
            return decode.decode(tried.build(**knobs), params, prompt, key)

        self.function = program
        self.jitted = toys.quick(program)

    def __call__(self, prompt, knobs=None):
        values = _arrays(self.tried.knobs if knobs is None else knobs)
        made = self.jitted(self.tried.params, prompt, jax.random.key(1), values)
        return jax.tree.map(np.asarray, made)


def _traced(tried: Tried) -> tuple[_Program, Finding | None]:
    program = _Program(tried)
    try:
        program(toys.ragged())
    except NOT_TRACEABLE as error:
        if not tried.knobs:
            raise
        where = _place(error)
        names = ", ".join(tried.knobs)
        says = (
            f"retraces: it reads {names} as a Python number{where}, so every value of "
            "it is another program; use jnp.where or arithmetic on it instead"
        )
        return program, Finding("one trace", False, says)
    return program, None


def _one_trace(tried: Tried, program: _Program) -> Finding:
    prompt, values = toys.ragged(), _arrays(tried.knobs)
    args = tried.params, prompt, jax.random.key(1), values
    # A function of its own each time: traces are kept by function.
    again = [lambda *args: program.function(*args) for _ in range(2)]
    texts = {_without_places(jax.make_jaxpr(each)(*args)) for each in again}
    count = program.num_traces - 2
    if count > 1:
        says = f"retraces: {count} traces where one program should serve all values"
        return Finding("one trace", False, says)
    if len(texts) > 1:
        says = (
            "retraces differently: traced twice with the same arguments it made two "
            "programs, so it reads something that is no argument (a global, a clock, "
            "Python's own random numbers)"
        )
        return Finding("one trace", False, says)
    what = f"for every value of {', '.join(tried.knobs)}" if tried.knobs else (
        "and the same one when it is traced again"
    )  # fmt: skip
    return Finding("one trace", True, f"one program {what}")


def _ends(tried: Tried, generation, stats) -> Finding:
    limit = STOPPED_BY.index("max_steps")
    cut = np.flatnonzero(generation.stopped_by == limit)
    steps = int(stats.num_steps)
    if len(cut):
        row = int(cut[0])
        done = int(generation.lengths[row])
        return Finding(
            "terminates",
            False,
            f"does not terminate: after {steps} steps, the most that it may take, "
            f"{len(cut)} of {len(toys.ROWS)} rows were not done; the row "
            f"[{string(toys.ROWS[row])}] had {done} of {toys.MOST[row]} tokens",
        )
    calls = np.asarray(stats.num_calls)
    return Finding(
        "terminates",
        True,
        f"every row ended within {steps} steps (at most {calls.max()} calls for "
        f"{toys.NEW} tokens)",
    )


def _alone(program: _Program, generation, stats) -> Finding:
    order = np.array(toys.ORDER)
    rows, most = ([each[i] for i in order] for each in (toys.ROWS, toys.MOST))
    moved = program(toys.ragged(rows, most, ids=order))
    worst = _differs(
        generation, stats, moved[0], moved[1], enumerate(order), "in another order"
    )
    for keep in (1, 3):
        if worst:
            break
        rows = [toys.ROWS[i] if i == keep else [2] for i in range(len(order))]
        most = [toys.MOST[i] if i == keep else 1 for i in range(len(order))]
        beside = program(toys.ragged(rows, most))
        worst = _differs(
            generation, stats, beside[0], beside[1], [(keep, keep)], "beside other rows"
        )
    if worst:
        return Finding("row-independent", False, f"batch-dependent: {worst}")
    says = f"{len(order)} rows came out the same in another order and beside other rows"
    return Finding("row-independent", True, says)


def _differs(mine, my_stats, its, its_stats, places, how) -> str:
    """How a row changed with its company, in words; empty if none did."""
    for place, row in places:
        end = mine.start[row] + mine.lengths[row]
        name = f"the row [{string(toys.ROWS[row])}] {how}"
        before, after = mine.tokens[row, :end], its.tokens[place, :end]
        if (before != after).any() or mine.lengths[row] != its.lengths[place]:
            begin = mine.start[row]
            return (
                f"{name} became [{string(after[begin:])}] and not "
                f"[{string(before[begin:])}]"
            )
        for field in ("num_calls", "num_query_tokens", "num_revoked"):
            a, b = getattr(my_stats, field)[row], getattr(its_stats, field)[place]
            if a != b:
                what = field.removeprefix("num_").replace("_", " ")
                return f"{name} took {b} {what} and not {a}"
    return ""


def _arrays(knobs: dict[str, float]) -> dict[str, Any]:
    return {name: jnp.float32(value) for name, value in knobs.items()}


def _fixed(tried: Tried) -> Callable[..., Decoder]:
    return lambda: tried.build(**tried.knobs)


def _place(error: Exception) -> str:
    """The last line of a user's own code that an error passed, as " (file.py:12)"."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_ours = frame.filename.startswith(OURS)
        if not is_ours and "/jax/" not in frame.filename:
            name = frame.filename.rpartition("/")[2]
            return f" ({name}:{frame.lineno}: {frame.line})"
    return ""


def _without_places(jaxpr: Any) -> str:
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))
