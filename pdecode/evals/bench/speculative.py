"""What drafting buys: `pdecode bench --suite speculative`.

Drafters, acceptance rules and draft sizes on the embedded models, at several batch
sizes and temperatures. Every line is repeated in turn with autoregressive decoding of
the same prompts, so that the wall ratio is of neighbours in one run. Methods that
choose the length of their drafts get the costs of calls as their loop is measured to
pay them.
"""

import functools
import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode import assembly, knobs, prompts
from pdecode import programs as programs_module
from pdecode.decode import Stats
from pdecode.drafters import paced
from pdecode.evals import quality, tasks
from pdecode.hardware import roofline
from pdecode.methods import variants

BASELINE = "autoregressive"
MAX_PROMPT = 96  # characters

# Name of a method or variant, and its settings by size; sizes count draft nodes.
CASES: tuple[tuple[str, dict[int, dict[str, Any]]], ...] = (
    ("prompt_lookup", {n: {"num_draft": n} for n in (1, 2, 4, 8)}),
    ("auto_lookup", {8: {"num_draft": 8}}),
    ("sam_decoding", _BOTH := {
        n: {"num_draft": n, "widths": (n - 1, 1), "num_top": 8} for n in (2, 4, 8)
    }),
    ("auto sam_decoding", {8: _BOTH[8]}),
    ("token_recycling", _RECYCLED := {
        n: {"widths": (n // 2, n - n // 2), "num_top": 8} for n in (2, 4, 8)
    }),
    ("auto token_recycling", {8: _RECYCLED[8]}),
    (
        "lookahead",
        {4: {"level": 3, "window_size": 2, "guess_set_size": 2},
         8: {"level": 3, "window_size": 4, "guess_set_size": 4}},
    ),
    ("jacobi", {n: {"window": n} for n in (2, 4, 8)}),
    ("sjd", {n: {"window": n} for n in (4, 8)}),
    ("blockwise", {n: {"num_draft": n} for n in (1, 2, 4)}),
    ("auto blockwise", {4: {"num_draft": 4}}),
    ("speculative_sampling", {n: {"num_draft": n} for n in (1, 2, 4, 8)}),
    ("auto_speculation", {8: {"num_draft": 8}}),
    ("coupled_sampling", {n: {"num_draft": n} for n in (2, 4, 8)}),
    ("block_verification", {n: {"num_draft": n} for n in (2, 4, 8)}),
    ("specinfer", {4: {"branching": (2, 1)}, 6: {"branching": (2, 2)}}),
    ("opt_tree", _GROWN := {
        n: {"num_nodes": n, "max_depth": min(n - 1, 4)} for n in (4, 8, 16)
    }),
    ("auto opt_tree", {16: _GROWN[16]}),
    ("sequoia", _STATIC := {
        n: {"num_nodes": n, "max_depth": min(n, 4)} for n in (1, 2, 4, 8)
    }),
    ("auto sequoia", {8: _STATIC[8]}),
)  # fmt: skip

# Some of them, for a few minutes on two cores.
_FEW = {
    "prompt_lookup": (2, 4),
    "auto_lookup": (8,),
    "blockwise": (2,),
    "speculative_sampling": (2, 4),
    "auto_speculation": (8,),
    "block_verification": (4,),
}
QUICK = tuple(
    (name, {size: sizes[size] for size in _FEW[name]})
    for name, sizes in CASES
    if name in _FEW
)
# Whose drafts are as large as is worth their measured costs; of "auto NAME", NAME's.
AUTO = "auto "
FIXED = {
    "auto_lookup": "prompt_lookup",
    "auto_speculation": "speculative_sampling",
    **{name: name.removeprefix(AUTO) for name, _ in CASES if name.startswith(AUTO)},
}


PROBE = 4  # drafts a round whose cost is measured
DEAR = 1e9  # a price that nothing is worth


class Rounds(NamedTuple):
    """What decodes took, and did."""

    seconds: float
    steps: int  # rounds
    lanes: int  # of the target's calls
    calls: int  # of the drafter


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
    proposed: float  # a call
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
    temperatures: Sequence[float] = (0.0, 0.8),
    repeats: int = 5,
    seed: int = 0,
    known: Sequence[Line] = (),
    is_told: Callable[[str], None] = lambda text: None,
) -> Iterator[Line]:
    """Measures every case at every batch size and temperature, line by line.

    `is_told` gets what is measured next; lines that are `known` are not measured again
    but handed on. Raises ValueError for a batch size that does not divide `num_prompts`
    and for sizes below 1.
    """
    done = {each[:4]: each for each in known}
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
    for batch_size in batch_sizes:
        batches = [
            prompts.from_rows(
                rows[i : i + batch_size],
                max_new_tokens=max_new_tokens,
                row_ids=range(i, i + batch_size),
                pad_to=max(map(len, rows)),
                model=model,
            )
            for i in range(0, num_prompts, batch_size)
        ]
        for name, size, temperature in _places(cases, temperatures):
            place = (name, size, batch_size, temperature)
            if place in done:
                yield done[place]
                continue
            is_told(f"{name} of {size} nodes, batch {batch_size}, at {temperature}")
            common = {"max_new_tokens": max_new_tokens, "temperature": temperature}
            settings = {**dict(cases)[name][size], **common}
            costs: dict[str, Any] = {}
            if name in FIXED:
                costs, bare = measured_costs(name, settings, batches, repeats, seed)
                is_told(_told(costs, bare))
            plain = _prepared(BASELINE, common, batches[0])
            own = _prepared(name, {**costs, **settings}, batches[0])
            stats, ratio = _raced(own, plain, batches, repeats, seed)
            yield _line(*place, stats, ratio)


def measured_costs(
    name: str, settings: dict[str, Any], batches, repeats: int, seed: int
) -> tuple[dict[str, Any], float]:
    """Costs that a method of chosen lengths is given, and that of a bare drafter call.

    All over a round without a draft, as the method's own loop takes it: its program is
    timed at prices under which it never drafts, and again drafting PROBE tokens a round
    (see `in_loop`). The bare call is `roofline`'s, of the drafter's model and head.
    """
    takes = knobs.parameters(_resolved(name)[0])
    width, batch_size = batches[0].tokens.shape[1], batches[0].tokens.shape[0]
    target = _bare("target", paced.WIDTHS, batch_size, width)
    # A width that no call may have is dear, the others cost nothing more than one lane.
    none = (1.0, *(DEAR,) * 5)
    some = tuple(1.0 if w <= PROBE * 2 else DEAR for w in paced.WIDTHS)
    has_model = not takes.keys().isdisjoint(("draft_cost", "draft_percent"))
    timed = []
    for prices in (none, some)[: 1 + has_model]:
        given = in_its_words(takes, prices, 0.0)
        own = _prepared(name, {**settings, **given}, batches[0])
        stats, seconds = _timed(own, batches, repeats, seed)
        timed.append(rounds_of(stats, seconds))
    plain = timed[0].seconds / timed[0].steps
    calls = tuple((plain + target.at(w) - target.at(1)) / plain for w in paced.WIDTHS)
    if not has_model:
        return in_its_words(takes, calls, 0.0), 0.0
    draft = in_loop(timed[0], timed[1], target) / plain
    bare = _bare("drafter", (1,), batch_size, width).at(1) / plain
    return in_its_words(takes, calls, draft), bare


def in_its_words(takes, calls: Sequence[float], draft: float) -> dict[str, Any]:
    """Costs as a method takes them: shares of a round without a draft, or percents."""
    if "call_percent" in takes:
        most = knobs.MOST
        percents = tuple(min(max(round(100 * each), 1), most) for each in calls)
        return {
            "call_percent": percents,
            "draft_percent": min(round(100 * draft), most),
        }
    drafts = {"draft_cost": draft} if "draft_cost" in takes else {}
    return {"call_costs": tuple(calls), **drafts}


def _told(costs: dict[str, Any], bare: float) -> str:
    told = ", ".join(f"{name} {value}" for name, value in costs.items())
    told = f"with {told} of a round without a draft"
    return f"{told} (a bare call of the drafter: {bare:.2f})" if bare else told


def rounds_of(stats: Sequence[Stats], seconds: float) -> Rounds:
    """Of the rows that took longest, one a batch: their counts are the batch's."""
    steps = lanes = calls = 0
    for each in stats:
        row = int(np.argmax(np.asarray(each.num_calls)))
        steps += int(each.num_calls[row])
        lanes += int(each.num_query_tokens_computed[row])
        calls += int(each.num_draft_calls[row])
    return Rounds(seconds, steps, lanes, calls)


def in_loop(plain: Rounds, drafting: Rounds, target: roofline.Curve) -> float:
    """Seconds that a drafter's call adds to the loop that makes it.

    What rounds that draft take above as many that do not, less what the target's calls
    cost more for their lanes, over the drafter's calls. So the draw, the law that is
    kept of it and the rule that reads it count, which a bare call has not.
    """
    more = drafting.seconds - drafting.steps * plain.seconds / plain.steps
    wider = target.at(drafting.lanes / drafting.steps) - target.at(1)
    return max(more - drafting.steps * wider, 0.0) / max(drafting.calls, 1)


@functools.cache
def _bare(
    role: str, widths: tuple[int, ...], batch: int, context: int
) -> roofline.Curve:
    model, params, _ = assembly.load(role)
    calls = [
        roofline.compiled_call(model, params, width, batch=batch, context=context)
        for width in widths
    ]
    return roofline.measure(widths, calls)


def _timed(decode, batches, repeats: int, seed: int) -> tuple[list[Stats], float]:
    """The counters of all batches and their seconds, the median of `repeats`."""
    key = jax.random.key(seed)
    decode(batches[0], key)  # warm
    made = [[decode(batch, key) for batch in batches] for _ in range(repeats)]
    spent = [sum(each.decode_s for each in some) for some in made]
    return [each.stats for each in made[0]], statistics.median(spent)


def _places(cases, temperatures: Sequence[float]) -> Iterator[tuple[str, int, float]]:
    """Name, size and temperature of every line; those of one program together."""
    for name, sizes in cases:
        for size in sizes:
            yield from ((name, size, temperature) for temperature in temperatures)


def _resolved(name: str) -> tuple[Callable, dict[str, Any]]:
    """A method and the settings that a name of CASES implies."""
    method, own = variants.resolve(name.removeprefix(AUTO))
    if not name.startswith(AUTO):
        return method, own
    how = {"draft_length", "tree_size"} & knobs.parameters(method).keys()
    return method, {**own, **dict.fromkeys(how, "auto")}


def _prepared(name: str, settings: dict[str, Any], prompt) -> Callable:
    """A function (prompt, key) -> Decoded of a method with the embedded models."""
    method, own = _resolved(name)
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
    low, high = quality.interval(kept, calls)
    num_tokens, proposed = committed.sum(), of_rows("num_proposed").sum()
    return Line(
        name=name,
        size=size,
        batch_size=batch_size,
        temperature=temperature,
        accepted=float(kept.sum() / calls.sum()),
        accepted_low=low,
        accepted_high=high,
        acceptance_rate=float(kept.sum() / max(proposed, 1)),
        proposed=float(proposed / calls.sum()),
        target_calls=float(calls.sum() / num_tokens),
        draft_calls=float(of_rows("num_draft_calls").sum() / num_tokens),
        queries=float(of_rows("num_query_tokens_computed").sum() / num_tokens),
        ratio=ratio,
    )


def table(found: Sequence[Line]) -> str:
    """The lines as text."""
    head = (
        f"{'drafter and rule':22} {'N':>3} {'B':>3} {'T':>4} {'accepted':>8} "
        f"{'95 %':>13} {'rate':>6} {'drafted':>7} {'calls':>6} {'drafts':>6} "
        f"{'lanes':>6} {'ratio':>6}"
    )
    told = [
        f"{each.name:22} {each.size:3} {each.batch_size:3} {each.temperature:4.1f} "
        f"{each.accepted:8.2f} {each.accepted_low:6.2f}-{each.accepted_high:<6.2f} "
        f"{each.acceptance_rate:6.2f} {each.proposed:7.2f} {each.target_calls:6.2f} "
        f"{each.draft_calls:6.2f} {each.queries:6.2f} {each.ratio:6.2f}"
        for each in found
    ]
    note = (
        "accepted: drafted tokens kept a call; rate: of those proposed; drafted a call;"
        " calls, drafts and lanes a token; ratio: wall time of autoregressive decoding "
        "over this"
    )
    return "\n".join([head, *told, note, *verdicts(found)])


def verdicts(found: Sequence[Line]) -> list[str]:
    """How each chosen length compares with the fixed ones around its mean.

    No draft at all, which is autoregressive decoding, is one of these.
    """
    told = []
    for own in found:
        fixed = {
            each.size: each.ratio
            for each in found
            if each.name == FIXED.get(own.name)
            and (each.batch_size, each.temperature) == (own.batch_size, own.temperature)
        }
        if not fixed:
            continue
        fixed[0] = 1.0
        below = max(size for size in fixed if size <= own.proposed)
        above = min((size for size in fixed if size > own.proposed), default=below)
        best = max(fixed[below], fixed[above])
        told.append(
            f"{own.name}, batch {own.batch_size}, T {own.temperature}: "
            f"{own.proposed:.1f} drafted a call, {own.ratio:.2f} times; fixed {below}: "
            f"{fixed[below]:.2f}, {above}: {fixed[above]:.2f}; over the better "
            f"{own.ratio / best:.3f}"
        )
    return told
