"""What the decoding loop costs beside the model: `pdecode bench --suite loop`.

The reference is the same apply and head, at the same batch, queries and cache slots,
repeated in one `fori_loop` in which each call's tokens come from the one before and a
prefix grows by one token a call. The second reference is the same step, jitted, driven
from the host with one wait a step.
"""

import operator
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode import generation, methods, prompts, rng
from pdecode import programs as programs_module
from pdecode.hardware import roofline

LIMIT = 1.05  # what the loop may cost over the bare calls


class Case(NamedTuple):
    """One loop to measure."""

    name: str
    method: Any
    model: str
    settings: dict[str, Any]
    num_queries: int | None  # None: the whole canvas
    num_stored: int = 0  # draft nodes that need scratch slots


CASES = (
    Case("autoregressive", methods.autoregressive, "target", {}, 1),
    Case("draft_verify", methods.prompt_lookup, "target", {"num_draft": 7}, 8, 7),
    Case("full_canvas", methods.llada, "diffusion", {"steps": 32}, None),
)


class Overhead(NamedTuple):
    """Milliseconds a step, medians of the repeats.

    Loop and calls are repeated in turn, and `ratio` is the median of the ratios of
    neighbours, which a machine that slows down for a while disturbs less.
    """

    name: str
    batch_size: int
    num_queries: int
    num_slots: int
    num_steps: int
    loop_ms: float  # decode
    calls_ms: float  # the bare calls
    host_ms: float  # the same step driven from the host
    ratio: float  # loop over calls
    host_ratio: float  # host over calls


def overhead(
    case: Case,
    *,
    batch_size: int = 1,
    prompt_len: int = 64,
    max_new_tokens: int = 128,
    repeats: int = 51,
    seed: int = 0,
) -> Overhead:
    """Measures one case on random prompts; no row ends early.

    What it takes to start a program is part of both sides.
    """
    model, params, _ = generation.load(case.model)
    model = model._replace(eos_ids=())
    draw = np.random.default_rng(seed)
    rows = draw.integers(32, 127, (batch_size, prompt_len)).tolist()
    prompt = prompts.from_rows(rows, max_new_tokens=max_new_tokens, model=model)
    key = rng.key(seed)
    settings: dict[str, Any] = {**case.settings, "max_new_tokens": max_new_tokens}
    programs = programs_module.compiled(
        case.method, model, params, prompt, is_dated=False, **settings
    )
    length = prompt_len + max_new_tokens
    num_slots = length + 1 + case.num_stored
    count = case.settings.get("steps", max_new_tokens)
    bare, arguments = roofline.repeated_call(
        model,
        params,
        batch_size,
        length if case.num_queries is None else prompt_len - 1,
        case.num_queries or length,
        count,
        num_slots=num_slots,
        is_canvas=case.num_queries is None,
    )
    step = programs_module.host_step(case.method, model, settings)
    host = _host_loop(programs, step, params, prompt, key)
    jax.block_until_ready(bare(*arguments))
    decoded = programs_module.timed(programs, params, prompt, key)
    num_steps = int(decoded.stats.num_steps)
    loop_s, calls_s = [], []
    for _ in range(repeats):
        decoded = programs_module.timed(programs, params, prompt, key)
        loop_s.append(decoded.decode_s / num_steps)
        calls_s.append(_seconds(bare, arguments) / count)
    # Apart, for its many small programs leave the processor's caches cold.
    host_s = [host() / num_steps for _ in range(repeats)]
    loop_ms, calls_ms, host_ms = (
        1e3 * statistics.median(times) for times in (loop_s, calls_s, host_s)
    )
    return Overhead(
        name=case.name,
        batch_size=batch_size,
        num_queries=case.num_queries or length,
        num_slots=num_slots,
        num_steps=num_steps,
        loop_ms=loop_ms,
        calls_ms=calls_ms,
        host_ms=host_ms,
        ratio=statistics.median(map(operator.truediv, loop_s, calls_s)),
        host_ratio=host_ms / calls_ms,
    )


def _seconds(program, arguments) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - began


def table(found: list[Overhead]) -> str:
    """The overheads as text."""
    lines = [
        "case             B     W     S  steps  loop ms  calls ms  host ms  "
        "loop/calls  host/calls"
    ]
    lines += [
        f"{each.name:14} {each.batch_size:3} {each.num_queries:5} "
        f"{each.num_slots:5}  {each.num_steps:5}  {each.loop_ms:7.3f}  "
        f"{each.calls_ms:8.3f}  {each.host_ms:7.3f}  {each.ratio:10.3f}  "
        f"{each.host_ratio:10.3f}"
        for each in found
    ]
    worst = max(each.ratio for each in found)
    verdict = "within" if worst <= LIMIT else "ABOVE"
    lines.append(f"worst loop/calls {worst:.3f}, {verdict} the limit of {LIMIT:.2f}")
    return "\n".join(lines)


def _host_loop(programs: programs_module.Programs, step, params, prompt, key):
    """A function that decodes step by step from the host and returns seconds."""

    def once() -> float:
        carry = programs.start(params, prompt, key, programs.knobs)
        jax.block_until_ready(carry)
        began, is_done = time.perf_counter(), False
        while not is_done:
            carry, done = step(params, carry, programs.knobs)
            is_done = bool(done)
        return time.perf_counter() - began

    once()
    return once
