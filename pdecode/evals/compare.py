"""The main job: methods race on the same real prompts, with honest numbers.

Every method decodes the same prompts in the same batches through the same loop. Two
methods compile at a time, in threads, while the ones before them are judged; timing
runs alone. Prefill, compile and warm-up are apart from decoding; tokens behind EOS are
not counted; wall times are medians of repeats, each over all prompts.
"""

import statistics
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode import generation, prompts, rng
from pdecode import programs as programs_module
from pdecode.contracts import STOPPED_BY, Model
from pdecode.evals import lineup, quality, tasks
from pdecode.evals.lineup import Entry
from pdecode.hardware import roofline

MAX_PROMPT = 96  # characters
NUM_COMPILED = 2  # methods compiled at a time
COMPILER = "pdecode-compiler"  # name of the threads that do it
MIN_REPEATS, MAX_REPEATS = 3, 9
REPEAT_BUDGET_S = 1.0  # a method is repeated for about as long


class Settings(NamedTuple):
    """What the user may choose."""

    methods: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()  # "method.knob=value"
    model: str | None = None
    batch_size: int = 1
    num_prompts: int = 8
    max_new_tokens: int = 48
    hardware: str = "cpu"
    seed: int = 0


class Row(NamedTuple):
    """One method's numbers; None where one has no meaning or a judge is missing."""

    name: str
    settings: dict[str, Any]
    guarantee: str  # "lossless" or "lossy"
    temperature: float
    tokens_per_call: float
    calls_per_row: float
    queries_per_token: float  # asked for
    queries_per_token_computed: float  # padding lanes included
    mean_accepted: float | None  # drafted tokens kept a call, the next token apart
    tokens_per_s: float  # of decoding alone
    ratio: float  # of tokens_per_s to the first row's
    prefill_s: float  # median, all batches
    decode_s: tuple[float, ...]  # repeats, all batches
    compile_s: float
    num_cached: int  # of its two programs
    identical: str | None  # lossless methods: rows equal to the baseline's greedy ones
    differences: dict[str, list]  # near_ties and mismatches, see quality.Identity
    bits_per_byte: float | None  # of the generated text, under the target
    distinct_4: float | None
    exact_match: float
    predicted_here: float | None = None  # wall ratio by the measured cost of a call
    predicted_there: float | None = None  # and by the roofline of the named hardware
    drafter_calls: float | None = None  # a round
    queries_per_call: float = 1.0  # computed
    texts: tuple[str, ...] = ()
    commit_steps: tuple[list[int], ...] = ()  # a list a row, one number a token


class Context(NamedTuple):
    """What all rows share."""

    settings: Settings
    entries: list[Entry]
    completions: list[tasks.Completion]
    rows: list[list[int]]  # prompts as ids
    batches: list[prompts.Prompt]
    width: int  # P
    judge: quality.Judge | None  # None: no causal target to judge with
    tokenizer: Any
    held_out: dict[str, float | None]  # bits_per_byte and distinct_4 of the references
    notes: list[str]

    @property
    def target(self) -> tuple[Model, Any]:
        """The model of the first entry, and its parameters."""
        first = self.entries[0]
        return first.models[0], first.params["model"]


class Finished(NamedTuple):
    """Rows with their predictions, and what those are made of (None: not measured)."""

    rows: tuple[Row, ...]
    curve: roofline.Curve | None
    drafter_s: float | None  # one drafter call of one query
    machine: roofline.Hardware | None


class _Timed(NamedTuple):
    """Repeated decodes of all batches."""

    decodes: list[programs_module.Decoded]  # of the last repeat
    prefill_s: list[float]
    decode_s: list[float]


def prepare(settings: Settings) -> Context:
    """Loads, checks and encodes everything, before any compiling. Raises ValueError."""
    size, num = settings.batch_size, settings.num_prompts
    for name in ("batch_size", "num_prompts", "max_new_tokens"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}={getattr(settings, name)} must be at least 1")
    if num % size:
        raise ValueError(f"num_prompts={num} must be a multiple of batch_size={size}")
    roofline.machine(settings.hardware, 1, 1)
    max_new = settings.max_new_tokens
    completions = tasks.completions(num, max_prompt=MAX_PROMPT, min_reference=max_new)
    entries, notes = lineup.entries(
        settings.methods, lineup.parse(settings.overrides), settings.model, max_new
    )
    model = entries[0].models[0]
    tokenizer = generation.load(_model_name(settings, entries[0]))[2]
    rows = [tokenizer.encode(each.prompt) for each in completions]
    width = max(map(len, rows))
    batches = [
        prompts.from_rows(
            rows[begin : begin + size],
            max_new=max_new,
            row_ids=range(begin, begin + size),
            pad_to=width,
            model=model,
        )
        for begin in range(0, num, size)
    ]
    judge, held_out = None, {"bits_per_byte": None, "distinct_4": None}
    if model.predicts == "next":
        params = entries[0].params["model"]
        judge = quality.Judge(model, params, size, width + max_new + 1)
        references = [
            tokenizer.encode(each.reference, bos=False)[:max_new]
            for each in completions
        ]
        scores = quality.judge(judge, rows, references)
        held_out = {
            "bits_per_byte": quality.bits_per_byte(scores, references, tokenizer),
            "distinct_4": quality.distinct(references),
        }
    else:
        notes.append(
            f"{settings.model} is no causal model: there is no greedy baseline and no "
            "judge; ratios are to the first method"
        )
    return Context(
        settings=settings,
        entries=entries,
        completions=completions,
        rows=rows,
        batches=batches,
        width=width,
        judge=judge,
        tokenizer=tokenizer,
        held_out=held_out,
        notes=notes,
    )


def race(context: Context, spent: dict[str, float]) -> Generator[Row, None, None]:
    """Rows in order, each when its method is measured and judged.

    `spent` collects seconds: "compile" (summed over threads), "wait" (of this thread
    for compiling), "timing", "judging". Close the generator to stop early.
    """
    baseline: tuple[Row, list, list] | None = None
    pool = ThreadPoolExecutor(NUM_COMPILED, thread_name_prefix=COMPILER)
    spent |= dict.fromkeys(("compile", "wait", "timing", "judging"), 0.0)
    groups = [
        context.entries[i : i + NUM_COMPILED]
        for i in range(0, len(context.entries), NUM_COMPILED)
    ]

    def submit(group: Sequence[Entry]):
        return [pool.submit(_compiled, context, entry) for entry in group]

    try:
        pending = submit(groups[0])
        for number, group in enumerate(groups):
            began = time.perf_counter()
            programs = [future.result() for future in pending]
            waited = time.perf_counter()
            timed = [_timed(context, *pair) for pair in zip(group, programs)]
            ended = time.perf_counter()
            pending = submit(groups[number + 1]) if number + 1 < len(groups) else []
            spent["compile"] += sum(each.compile_s for each in programs)
            spent["wait"] += waited - began
            spent["timing"] += ended - waited
            for entry, program, times in zip(group, programs, timed):
                began = time.perf_counter()
                judged = _judged(context, entry, program, times, baseline)
                baseline = judged if baseline is None else baseline
                spent["judging"] += time.perf_counter() - began
                yield judged[0]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def finish(context: Context, rows: Sequence[Row], spent: dict[str, float]) -> Finished:
    """Measures the cost of a call, and predicts wall ratios from it and the roofline.

    The prediction is tokens a call over the cost of a round: one target call of the
    queries computed, and the drafter's calls of one query. Widths between the measured
    ones are interpolated.
    """
    began = time.perf_counter()
    size, max_new = context.settings.batch_size, context.settings.max_new_tokens
    where = {"batch": size, "context": context.width + max_new // 2}
    model, params = context.target
    widths = (*roofline.WIDTHS, context.width + max_new)
    drafter = _drafter(context)
    pairs = [(model, params, width) for width in widths]
    if drafter is not None:
        pairs.append((*drafter, 1))
    with ThreadPoolExecutor(NUM_COMPILED) as pool:
        calls = list(
            pool.map(lambda pair: roofline.compiled_call(*pair, **where), pairs)
        )
    curve = roofline.measure(widths, calls[: len(widths)])
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    machine = roofline.machine(
        context.settings.hardware, num_params, _cache_bytes(model, context)
    )
    drafter_s, drafter_there = None, 0.0
    if drafter is not None:
        drafter_s = roofline.measure((1,), calls[-1:]).seconds[0]
        share = sum(leaf.size for leaf in jax.tree.leaves(drafter[1])) / num_params
        drafter_there = roofline.roofline(machine, 1, scale=share, **where)

    def predicted(row: Row) -> Row:
        depth = row.drafter_calls or 0.0
        here = curve.at(row.queries_per_call) + depth * (drafter_s or 0.0)
        there = roofline.roofline(machine, row.queries_per_call, **where)
        one_there = roofline.roofline(machine, 1, **where)
        return row._replace(
            predicted_here=row.tokens_per_call * curve.at(1) / here,
            predicted_there=row.tokens_per_call
            * one_there
            / (there + depth * drafter_there),
        )

    found = tuple(predicted(row) for row in rows)
    spent["curve"] = time.perf_counter() - began
    return Finished(found, curve, drafter_s, machine)


def _model_name(settings: Settings, entry: Entry) -> str:
    return settings.model or generation.default_model(entry.method)


def _compiled(context: Context, entry: Entry) -> programs_module.Programs:
    return programs_module.compiled(
        entry.method,
        entry.models,
        entry.params,
        context.batches[0],
        max_new_tokens=context.settings.max_new_tokens,
        **entry.settings,
    )


def _timed(
    context: Context, entry: Entry, programs: programs_module.Programs
) -> _Timed:
    """One warm-up of one batch, then repeats of all batches."""
    key = rng.key(context.settings.seed)
    programs_module.timed(programs, entry.params, context.batches[0], key)
    prefills, decodes = [], []
    while len(decodes) < MIN_REPEATS or (
        len(decodes) < MAX_REPEATS and sum(decodes) < REPEAT_BUDGET_S
    ):
        last = [
            programs_module.timed(programs, entry.params, batch, key)
            for batch in context.batches
        ]
        prefills.append(sum(each.prefill_s for each in last))
        decodes.append(sum(each.decode_s for each in last))
    return _Timed(last, prefills, decodes)


def _judged(
    context: Context,
    entry: Entry,
    programs,
    timed: _Timed,
    baseline: tuple[Row, list, list] | None,
) -> tuple[Row, list, list]:
    """(Row, rows with EOS, their margins) of one method."""
    texts_ids, with_eos, commit_steps = [], [], []
    for decoded in timed.decodes:
        made = decoded.generation
        for b, (start, length) in enumerate(zip(made.start, made.lengths)):
            saw_eos = STOPPED_BY[made.stopped_by[b]] == "eos"
            whole = slice(start, start + length + saw_eos)
            with_eos.append(made.tokens[b, whole].tolist())
            texts_ids.append(made.tokens[b, start : start + length].tolist())
            commit_steps.append(decoded.commit_step[b, whole].tolist())
    texts = [context.tokenizer.decode(row) for row in texts_ids]
    counts = _totals(timed)
    calls, committed = counts["num_calls"], counts["num_committed"]
    decode_s = statistics.median(timed.decode_s)
    rate = committed / decode_s
    # A round of draft-and-verify emits one token more than it accepts.
    is_draft = entry.models[0].predicts == "next"

    margins, bits, identical = [], None, None
    differences: dict[str, list] = {"near_ties": [], "mismatches": []}
    if context.judge is not None:
        scores = quality.judge(context.judge, context.rows, with_eos)
        margins = [each.margins for each in scores]
        # EOS is judged for the comparison, but it is no text.
        inner = [
            quality.Judged(each.log_probs[: len(row)], each.margins[: len(row)])
            for each, row in zip(scores, texts_ids)
        ]
        bits = quality.bits_per_byte(inner, texts_ids, context.tokenizer)
        if entry.is_lossless and entry.temperature == 0:
            wanted = (with_eos, margins) if baseline is None else baseline[1:]
            same = quality.identity(with_eos, *wanted)
            identical = str(same)
            differences = {"near_ties": same.near_ties, "mismatches": same.mismatches}
    exact = [
        tasks.is_completed(each.answer, text)
        for each, text in zip(context.completions, texts)
    ]
    row = Row(
        name=entry.name,
        settings=entry.settings,
        guarantee="lossless" if entry.is_lossless else "lossy",
        temperature=entry.temperature,
        tokens_per_call=committed / max(calls, 1),
        calls_per_row=calls / len(with_eos),
        queries_per_token=counts["num_query_tokens"] / max(committed, 1),
        queries_per_token_computed=counts["num_query_tokens_computed"]
        / max(committed, 1),
        mean_accepted=(committed - calls) / max(calls, 1) if is_draft else None,
        tokens_per_s=rate,
        ratio=1.0 if baseline is None else rate / baseline[0].tokens_per_s,
        prefill_s=statistics.median(timed.prefill_s),
        decode_s=tuple(timed.decode_s),
        compile_s=programs.compile_s,
        num_cached=programs.num_cached,
        identical=identical,
        differences=differences,
        bits_per_byte=bits,
        distinct_4=quality.distinct(texts_ids),
        exact_match=float(np.mean(exact)),
        drafter_calls=counts["num_draft_calls"] / max(calls, 1) or None,
        queries_per_call=counts["num_query_tokens_computed"] / max(calls, 1),
        texts=tuple(texts),
        commit_steps=tuple(commit_steps),
    )
    return row, with_eos, margins


def _totals(timed: _Timed) -> dict[str, int]:
    """Counters of all rows of one repeat, added up."""
    return {
        name: int(sum(getattr(each.stats, name).sum() for each in timed.decodes))
        for name in (
            "num_calls",
            "num_committed",
            "num_query_tokens",
            "num_query_tokens_computed",
            "num_draft_calls",
            "num_draft_tokens",
            "num_draft_tokens_computed",
        )
    }


def _drafter(context: Context):
    """(model, params) of the first drafter model in the lineup, or None."""
    for entry in context.entries:
        if len(entry.models) > 1 and isinstance(entry.models[1], Model):
            return entry.models[1], entry.params["drafter"]
    return None


def _cache_bytes(model: Model, context: Context) -> float:
    """Bytes of one token in one row's cache."""
    few = jax.eval_shape(lambda: model.init_cache(_row_of(context), 8))
    many = jax.eval_shape(lambda: model.init_cache(_row_of(context), 9))

    def total(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return float(total(many) - total(few))


def _row_of(context: Context) -> prompts.Prompt:
    return prompts.from_rows(context.rows[:1], max_new=1)
