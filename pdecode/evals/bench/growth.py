"""Whether a step's time grows with a table's size, or with the buffer beyond attention.

A drafter's table is read and written a few entries at a time; a program that copies it
is slower the larger it is. Three sizes each, timed in turn. The buffer's part is that
of `loop.overhead`: the loop over the same bare calls at the same number of slots.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pdecode import assembly, knobs, methods, prompts, rng
from pdecode import programs as programs_module
from pdecode.evals.bench import loop

LIMIT = 1.15  # what the largest may cost over the smallest
PROMPT_LEN = 32

# Method, the size of its table, three values; and what else it is given.
TABLES: tuple[tuple[str, str, tuple[int, ...], dict[str, Any]], ...] = (
    ("stand", "num_slots", (256, 4096, 65536), {"widths": (2, 2), "num_top": 4}),
    (
        "ouroboros",
        "num_kept",
        (4, 64, 1024),
        {"num_draft": 3, "phrase_len": 2, "num_phrases": 2},
    ),
)
BUFFERS = (64, 192, 440)  # tokens generated: slots of the cache, and the buffer


class Growth(NamedTuple):
    """One thing at three sizes."""

    name: str
    what: str
    sizes: tuple[int, ...]
    step_ms: tuple[float, ...]  # medians
    ratio: float  # the largest over the smallest; of buffers, less attention


def growths(
    *,
    max_new_tokens: int = 48,
    repeats: int = 15,
    is_told: Callable[[str], None] = lambda text: None,
) -> Iterator[Growth]:
    """Measures tables, then the buffer."""
    for name, what, sizes, settings in TABLES:
        is_told(f"{name} at {what} {', '.join(map(str, sizes))}")
        runs = [
            _prepared(name, {**settings, what: size}, max_new_tokens) for size in sizes
        ]
        times = [[run() for run in runs] for _ in range(repeats)]
        medians = tuple(1e3 * statistics.median(each) for each in zip(*times))
        # Of neighbours, so that a machine that slows down for a while disturbs less.
        ratio = statistics.median(each[-1] / each[0] for each in times)
        yield Growth(name, what, sizes, medians, ratio)
    case = next(each for each in loop.CASES if each.name == "draft_verify")
    found = []
    for size in BUFFERS:
        is_told(f"{case.name} with a buffer of {size + PROMPT_LEN}")
        found.append(
            loop.overhead(
                case, prompt_len=PROMPT_LEN, max_new_tokens=size, repeats=repeats
            )
        )
    yield Growth(
        case.name, "buffer", tuple(size + PROMPT_LEN for size in BUFFERS),
        tuple(each.loop_ms for each in found), found[-1].ratio / found[0].ratio,
    )  # fmt: skip


def _prepared(name: str, settings: dict[str, Any], max_new_tokens: int) -> Callable:
    """A function () -> seconds a step, after one warm-up."""
    method = getattr(methods, name)
    roles = knobs.roles(method)
    loaded = [assembly.load("target" if r == "model" else r)[:2] for r in roles]
    models = tuple(model._replace(eos_ids=()) for model, _ in loaded)
    params = dict(zip(roles, (each[1] for each in loaded), strict=True))
    rows = np.random.default_rng(0).integers(32, 127, (1, PROMPT_LEN)).tolist()
    prompt = prompts.from_rows(rows, max_new_tokens=max_new_tokens, model=models[0])
    key = rng.key(0)
    programs = programs_module.compiled(
        method, models, params, prompt, is_dated=False,
        max_new_tokens=max_new_tokens, **settings,
    )  # fmt: skip

    def run() -> float:
        decoded = programs_module.timed(programs, params, prompt, key)
        return decoded.decode_s / int(decoded.stats.num_steps)

    run()
    return run


def table(found: list[Growth]) -> str:
    """The lines as text, and whether all are within the limit."""
    told = [f"{'step of':16} {'size of':12} {'ms a step':>42}  largest/smallest"]
    for each in found:
        pairs = zip(each.sizes, each.step_ms)
        steps = "  ".join(f"{size}: {ms:.3f}" for size, ms in pairs)
        told.append(f"{each.name:16} {each.what:12} {steps:>42}  {each.ratio:.3f}")
    worst = max(each.ratio for each in found)
    verdict = "within" if worst <= LIMIT else "ABOVE"
    told.append(f"worst {worst:.3f}, {verdict} the limit of {LIMIT:.2f}")
    return "\n".join(told)
