"""What drafting buys: `print(table(list(lines())))`.

Drafters, acceptance rules and draft sizes on the embedded models, at several batch
sizes. Every line is repeated in turn with autoregressive decoding of the same prompts,
so that the wall ratio is of neighbours in one run.
"""

import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode import assembly, knobs, prompts
from pdecode import programs as programs_module
from pdecode.decode import Stats
from pdecode.evals import tasks
from pdecode.methods import variants

BASELINE = "autoregressive"
MAX_PROMPT = 96  # characters
NUM_RESAMPLES = 1000  # of the rows, for the confidence interval

# Name of a method or variant, and its settings by size; sizes count draft nodes.
CASES: tuple[tuple[str, dict[int, dict[str, Any]]], ...] = (
    ("prompt_lookup", {n: {"num_draft": n} for n in (2, 4, 8)}),
    (
        "sam_decoding",
        {n: {"num_draft": n, "widths": (n - 1, 1), "num_top": 8} for n in (4, 8)},
    ),
    (
        "token_recycling",
        {n: {"widths": (n // 2, n - n // 2), "num_top": 8} for n in (4, 8)},
    ),
    (
        "lookahead",
        {4: {"level": 3, "window_size": 2, "guess_set_size": 2},
         8: {"level": 3, "window_size": 4, "guess_set_size": 4}},
    ),
    ("jacobi", {n: {"window": n} for n in (2, 4, 8)}),
    ("sjd", {n: {"window": n} for n in (4, 8)}),
    ("blockwise", {n: {"num_draft": n} for n in (2, 4)}),
    ("speculative_sampling", {n: {"num_draft": n} for n in (2, 4, 8)}),
    ("coupled_sampling", {n: {"num_draft": n} for n in (2, 4, 8)}),
    ("block_verification", {n: {"num_draft": n} for n in (2, 4, 8)}),
    ("specinfer", {4: {"branching": (2, 1)}, 6: {"branching": (2, 2)}}),
)  # fmt: skip


class Line(NamedTuple):
    """One drafter, rule and size at one batch size."""

    name: str
    size: int  # draft nodes
    batch_size: int
    temperature: float
    accepted: float  # drafted tokens kept a call, the next token apart
    accepted_low: float  # 95 % of resampled prompts lie between
    accepted_high: float
    acceptance_rate: float  # kept of what was proposed
    target_calls: float  # a token, in the mean over rows
    draft_calls: float  # of the drafter's own model, a token
    queries: float  # target lanes evaluated, a token
    ratio: float  # wall time of autoregressive decoding over this, neighbours' median


def lines(
    *,
    cases: Sequence[tuple[str, dict[int, dict[str, Any]]]] = CASES,
    batch_sizes: Sequence[int] = (1, 8),
    num_prompts: int = 8,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    repeats: int = 5,
    seed: int = 0,
    is_told: Callable[[str], None] = lambda text: None,
) -> Iterator[Line]:
    """Measures every case at every batch size, line by line.

    `is_told` gets what is measured next. Raises ValueError for a batch size that does
    not divide `num_prompts` and for sizes below 1.
    """
    for value in (*batch_sizes, num_prompts, max_new_tokens, repeats):
        if value < 1:
            raise ValueError(f"sizes must be at least 1, but one is {value}")
    for size in batch_sizes:
        if num_prompts % size:
            raise ValueError(f"{num_prompts=} must be a multiple of batch size {size}")
    model, _, tokenizer = assembly.load("target")
    texts = tasks.completions(
        num_prompts, max_prompt=MAX_PROMPT, min_reference=max_new_tokens
    )
    rows = [tokenizer.encode(each.prompt) for each in texts]
    common = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    for batch_size in batch_sizes:
        batches = [
            prompts.from_rows(
                rows[i : i + batch_size],
                max_new=max_new_tokens,
                row_ids=range(i, i + batch_size),
                pad_to=max(map(len, rows)),
                model=model,
            )
            for i in range(0, num_prompts, batch_size)
        ]
        plain = _prepared(BASELINE, common, batches[0])
        for name, sizes in cases:
            for size, settings in sizes.items():
                is_told(f"{name} of {size} nodes, batch {batch_size}")
                own = _prepared(name, {**settings, **common}, batches[0])
                stats, ratio = _raced(own, plain, batches, repeats, seed)
                yield _line(name, size, batch_size, temperature, stats, ratio)


def _prepared(name: str, settings: dict[str, Any], prompt) -> Callable:
    """A function (prompt, key) -> Decoded of a method with the embedded models."""
    method, own = variants.resolve(name)
    loaded = [
        assembly.load("target" if role == "model" else role)
        for role in knobs.roles(method)
    ]
    params = dict(zip(knobs.roles(method), (each[1] for each in loaded), strict=True))
    programs = programs_module.compiled(
        method,
        tuple(each[0] for each in loaded),
        params,
        prompt,
        is_dated=False,
        **{**own, **settings},
    )
    return lambda prompt, key: programs_module.timed(programs, params, prompt, key)


def _raced(own, plain, batches, repeats: int, seed: int) -> tuple[list[Stats], float]:
    """The counters of all batches, and the median ratio of plain to own seconds."""
    key = jax.random.key(seed)
    for decode in (own, plain):
        decode(batches[0], key)  # warm
    spent: tuple[list, list] = ([], [])
    stats: list[Stats] = []
    for _ in range(repeats):
        decoded = [own(batch, key) for batch in batches]
        stats = [each.stats for each in decoded]
        spent[0].append(sum(each.decode_s for each in decoded))
        spent[1].append(sum(plain(batch, key).decode_s for batch in batches))
    return stats, statistics.median(map(operator.truediv, spent[1], spent[0]))


def _line(name, size, batch_size, temperature, stats: list[Stats], ratio) -> Line:
    def of_rows(field: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(each, field)) for each in stats])

    calls, committed = of_rows("num_calls"), of_rows("num_committed")
    kept = committed - calls
    low, high = interval(kept, calls)
    num_tokens = committed.sum()
    return Line(
        name=name,
        size=size,
        batch_size=batch_size,
        temperature=temperature,
        accepted=float(kept.sum() / calls.sum()),
        accepted_low=low,
        accepted_high=high,
        acceptance_rate=float(kept.sum() / max(of_rows("num_proposed").sum(), 1)),
        target_calls=float(calls.sum() / num_tokens),
        draft_calls=float(of_rows("num_draft_calls").sum() / num_tokens),
        queries=float(of_rows("num_query_tokens_computed").sum() / num_tokens),
        ratio=ratio,
    )


def interval(kept: np.ndarray, calls: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of sum(kept) / sum(calls) over rows drawn with replacement.

    Calls of one row resemble each other, so rows are what is drawn, not calls.
    """
    draw = np.random.default_rng(seed).integers(
        0, len(calls), (NUM_RESAMPLES, len(calls))
    )
    means = kept[draw].sum(1) / calls[draw].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def table(found: Sequence[Line]) -> str:
    """The lines as text."""
    head = (
        f"{'drafter and rule':22} {'N':>3} {'B':>3} {'accepted':>8} {'95 %':>13} "
        f"{'rate':>6} {'calls':>6} {'drafts':>6} {'lanes':>6} {'ratio':>6}"
    )
    told = [
        f"{each.name:22} {each.size:3} {each.batch_size:3} {each.accepted:8.2f} "
        f"{each.accepted_low:6.2f}-{each.accepted_high:<6.2f} "
        f"{each.acceptance_rate:6.2f} {each.target_calls:6.2f} "
        f"{each.draft_calls:6.2f} {each.queries:6.2f} {each.ratio:6.2f}"
        for each in found
    ]
    note = (
        "accepted: drafted tokens kept a call; rate: of those proposed; calls, drafts "
        "and lanes a token; ratio: wall time of autoregressive decoding over this"
    )
    return "\n".join([head, *told, note])
