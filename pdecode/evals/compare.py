"""The main job: methods race on the same real prompts, with honest numbers.

Every method decodes the same prompts in the same batches through the same loop. Two
methods compile at a time, in threads, while the ones before them are judged; timing
runs alone. Prefill, compile and warm-up are apart from decoding; tokens behind EOS are
not counted; wall times are medians of repeats, each over all prompts; ratios are to the
first method, timed anew beside every repeat.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pdecode import assembly, precision, prompts, rng, sharding
from pdecode import programs as programs_module
from pdecode.contracts import Model
from pdecode.evals import curve, lineup, quality, tasks
from pdecode.evals.curve import Costs, Priced
from pdecode.evals.lineup import Entry
from pdecode.evals.rows import Judged, Judging, Row, Timed, judged
from pdecode.hardware import roofline

MAX_PROMPT = 96  # characters
NUM_COMPILED = 2  # methods compiled at a time
COMPILER = "pdecode-compiler"  # name of the threads that do it
MIN_REPEATS, MAX_REPEATS = 3, 9
REPEAT_BUDGET_S = 1.0  # a method is repeated for about as long


class Settings(NamedTuple):
    """What the user may choose."""

    methods: tuple[str | Callable, ...] | None = None
    overrides: dict[str, dict[str, Any]] = {}  # method -> knob -> value
    model: str | None = None
    drafter: str | None = None
    judge: str | None = None  # a causal model; None: the target, if it is one
    dtype: str | None = None
    mesh: Mesh | None = None
    fused: bool | None = None  # projections as one product; None: on one GPU
    prompts: tuple[str, ...] | None = None  # None: held-out code with an answer
    batch_size: int = 1
    num_prompts: int = 8
    max_new_tokens: int = 48
    hardware: str = "h200"
    seed: int = 0


class Context(NamedTuple):
    """What all rows share."""

    settings: Settings
    entries: list[Entry]
    completions: list[tasks.Completion]
    rows: list[list[int]]  # prompts as ids
    batches: list[prompts.Prompt]
    width: int  # P
    judge: quality.Judge | None  # None: no causal model to judge with
    judge_name: str | None
    tokenizer: Any
    # Of the texts' true continuations: bits_per_byte, distinct_4, white_space.
    held_out: dict[str, float | None]
    notes: list[str]

    @property
    def dtype(self) -> str:
        """Of the activations of the first method's model."""
        embedding = self.entries[0].models[0].embedding
        return "float32" if embedding is None else embedding.dtype

    @property
    def judging(self) -> Judging:
        """What the text of every method is held against."""
        return Judging(
            self.judge, self.rows, self.completions, self.tokenizer,
            precision.near_tie(self.dtype),
        )  # fmt: skip

    @property
    def place(self) -> curve.Place:
        """Shapes of a call in the middle of a decode."""
        max_new_tokens = self.settings.max_new_tokens
        return curve.Place(
            self.settings.batch_size,
            self.width + max_new_tokens // 2,
            self.width + max_new_tokens,
        )


class Finished(NamedTuple):
    """Rows with their predictions, and what those are made of (None: not measured)."""

    rows: tuple[Row, ...]
    costs: Costs | None = None
    there: Priced | None = None

    def __repr__(self) -> str:
        lines = [
            f"{row.name:20} {row.tokens_per_call:6.2f} tokens a call {row.ratio:6.2f} "
            f"times  {row.guarantee}  {row.identical or ''}".rstrip()
            for row in self.rows
        ]
        return "\n".join(lines)


def compare(
    methods: Sequence[str | Callable] | None = None,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    prompts: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Finished:
    """Races `methods` (names, functions; None: the default ones) on the same prompts.

    `settings` maps a method to its knobs; `options` are the other fields of `Settings`.
    The rows of the result are in order, the baseline first. Raises ValueError.
    """
    unknown = sorted(set(options) - set(Settings._fields))
    if unknown:
        known = ", ".join(Settings._fields)
        raise ValueError(f"unknown option {unknown[0]!r}; known: {known}")
    if prompts is not None:
        options = {"num_prompts": len(prompts), "prompts": tuple(prompts), **options}
    chosen = None if methods is None else tuple(methods)
    context = prepare(Settings(methods=chosen, overrides=settings or {}, **options))
    spent: dict[str, float] = {}
    rows = list(race(context, spent, say))
    return finish(context, rows, spent)


def prepare(settings: Settings) -> Context:
    """Loads, checks and encodes everything, before any compiling. Raises ValueError."""
    size, num = settings.batch_size, settings.num_prompts
    for name in ("batch_size", "num_prompts", "max_new_tokens"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}={getattr(settings, name)} must be at least 1")
    if num % size:
        raise ValueError(f"num_prompts={num} must be a multiple of batch_size={size}")
    rng.key(settings.seed)  # refuses a bad one before anything is measured
    if settings.hardware not in roofline.MEASURED:
        roofline.machine(settings.hardware, 1, 1)
    completions = _completions(settings)
    choice = lineup.Choice(
        settings.model, settings.drafter, settings.dtype, settings.mesh, settings.fused
    )
    entries, notes = lineup.entries(
        settings.methods, settings.overrides, choice, settings.max_new_tokens
    )
    first = entries[0]
    rows = prompts.encode([each.prompt for each in completions], first.tokenizer)
    context = Context(
        settings=settings,
        entries=entries,
        completions=completions,
        rows=rows,
        batches=_batches(settings, rows, first.models[0]),
        width=max(map(len, rows)),
        judge=None,
        judge_name=None,
        tokenizer=first.tokenizer,
        held_out=dict.fromkeys(("bits_per_byte", "distinct_4", "white_space")),
        notes=notes,
    )
    return _with_judge(context)


def race(
    context: Context,
    spent: dict[str, float],
    say: Callable[[str], None] = lambda text: None,
) -> Generator[Row, None, None]:
    """Rows in order, each when its method is measured and judged.

    `spent` collects seconds: "compile" (summed over threads), "wait" (of this thread
    for compiling), "timing", "judging". `say` hears what is being done. Close the
    generator to stop early.
    """
    baseline: Judged | None = None
    first: tuple[Entry, programs_module.Programs] | None = None
    pool = ThreadPoolExecutor(NUM_COMPILED, thread_name_prefix=COMPILER)
    spent |= dict.fromkeys(("compile", "wait", "timing", "judging"), 0.0)
    groups = [
        context.entries[i : i + NUM_COMPILED]
        for i in range(0, len(context.entries), NUM_COMPILED)
    ]
    level = precision.level()

    def task(entry: Entry):
        # Of this thread alone, where it was set by jax's own context manager.
        with jax.default_matmul_precision(level):
            return compiled(context, entry)

    def submit(group: Sequence[Entry]):
        return [pool.submit(task, entry) for entry in group]

    try:
        pending, done = submit(groups[0]), 0
        for number, group in enumerate(groups):
            names = ", ".join(entry.recipe.label for entry in group)
            done += len(group)
            say(f"compiling and measuring {names} ({done} of {len(context.entries)})")
            began = time.perf_counter()
            programs = [future.result() for future in pending]
            waited = time.perf_counter()
            if first is None:
                first = group[0], programs[0]
            times = [timed(context, *pair, first) for pair in zip(group, programs)]
            ended = time.perf_counter()
            pending = submit(groups[number + 1]) if number + 1 < len(groups) else []
            spent["compile"] += sum(each.compile_s for each in programs)
            spent["wait"] += waited - began
            spent["timing"] += ended - waited
            for entry, program, taken in zip(group, programs, times):
                began = time.perf_counter()
                with programs_module.on(context.settings.mesh):
                    made = judged(entry, program, taken, context.judging, baseline)
                baseline = made if baseline is None else baseline
                spent["judging"] += time.perf_counter() - began
                yield made.row
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def finish(
    context: Context,
    rows: Sequence[Row],
    spent: dict[str, float],
    folder: Path | None = None,
) -> Finished:
    """Measures the cost of calls, and predicts wall ratios by it and elsewhere.

    With a mesh nothing is: the calls are measured on one device. What was measured is
    kept in `folder`, and taken from there.
    """
    if context.settings.mesh is not None:
        return Finished(tuple(rows))
    began = time.perf_counter()
    costs = curve.measure(context.entries, rows, context.place, folder)
    there = curve.priced(context.settings.hardware, context.entries, context.place)
    found = curve.predict(rows, costs, there)
    spent["curve"] = time.perf_counter() - began
    return Finished(found, costs, there)


def _completions(settings: Settings) -> list[tasks.Completion]:
    """The prompts, and what is known of how they go on."""
    if settings.prompts is None:
        return tasks.completions(
            settings.num_prompts,
            max_prompt=MAX_PROMPT,
            min_reference=settings.max_new_tokens,
        )
    if len(settings.prompts) != settings.num_prompts:
        raise ValueError(
            f"num_prompts={settings.num_prompts}, but there are "
            f"{len(settings.prompts)} prompts"
        )
    return [
        tasks.Completion(f"prompt {index}", text, "", "")
        for index, text in enumerate(settings.prompts)
    ]


def _batches(settings: Settings, rows, model: Model) -> list[prompts.Prompt]:
    size, width = settings.batch_size, max(map(len, rows))
    # As `generate` names them: a prompt's noise is its own.
    names = prompts.row_ids(rows)
    made = [
        prompts.from_rows(
            rows[begin : begin + size],
            max_new_tokens=settings.max_new_tokens,
            row_ids=names[begin : begin + size],
            pad_to=width,
            model=model,
        )
        for begin in range(0, len(rows), size)
    ]
    if settings.mesh is None:
        return made
    return [sharding.shard_rows(each, settings.mesh) for each in made]


def _with_judge(context: Context) -> Context:
    """`context` with a causal model to judge by: the one named, or the target."""
    settings, first = context.settings, context.entries[0]
    max_new_tokens = settings.max_new_tokens
    if settings.judge is not None:
        name = settings.judge
        model, params, _ = assembly.load(
            name, settings.dtype, settings.mesh, settings.fused
        )
        if getattr(model, "predicts", None) != "next":
            raise ValueError(f"judge={name!r} is no causal model: it can judge no text")
        if model.vocab_size != first.models[0].vocab_size:
            raise ValueError(
                f"judge={name!r} has {model.vocab_size} token ids and "
                f"{first.model_names[0]} has {first.models[0].vocab_size}: they need "
                "one vocabulary"
            )
    else:
        name, model, params = (
            first.model_names[0], first.models[0], first.params["model"],
        )  # fmt: skip
    if model.predicts != "next":
        note = (
            f"{name} is no causal model: there is no greedy baseline and no judge "
            f"(--judge names one); times are relative to {first.recipe.label}"
        )
        return context._replace(notes=[*context.notes, note])
    judge = quality.Judge(
        model, params, settings.batch_size, context.width + max_new_tokens + 1
    )
    held_out = context.held_out
    if all(each.reference for each in context.completions):
        texts = [each.reference for each in context.completions]
        ids = [
            context.tokenizer.encode(text, bos=False)[:max_new_tokens] for text in texts
        ]
        with programs_module.on(settings.mesh):
            scores = quality.judge(judge, context.rows, ids)
        held_out = {
            "bits_per_byte": quality.bits_per_byte(scores, ids, context.tokenizer),
            "distinct_4": quality.distinct(ids),
            "white_space": quality.white_space(
                [context.tokenizer.decode(row) for row in ids]
            ),
        }
    return context._replace(judge=judge, judge_name=name, held_out=held_out)


def compiled(context: Context, entry: Entry) -> programs_module.Programs:
    """The programs of one method, for batches as wide as the context's."""
    return programs_module.compiled(
        entry.recipe.method,
        entry.models,
        entry.params,
        context.batches[0],
        mesh=context.settings.mesh,
        max_new_tokens=context.settings.max_new_tokens,
        **entry.settings,
    )


def timed(
    context: Context,
    entry: Entry,
    programs: programs_module.Programs,
    first: tuple[Entry, programs_module.Programs],
) -> Timed:
    """One warm-up of one batch, then repeats of all, the first method's beside each."""
    key = rng.key(context.settings.seed)
    if context.settings.mesh is not None:
        key = sharding.replicate(key, context.settings.mesh)

    def once(entry: Entry, programs) -> list[programs_module.Decoded]:
        return [
            programs_module.timed(programs, entry.params, batch, key)
            for batch in context.batches
        ]

    programs_module.timed(programs, entry.params, context.batches[0], key)
    last, prefills, decodes, beside = [], [], [], []
    while len(decodes) < MIN_REPEATS or (
        len(decodes) < MAX_REPEATS and sum(decodes) < REPEAT_BUDGET_S
    ):
        last = once(entry, programs)
        prefills.append(sum(each.prefill_s for each in last))
        decodes.append(sum(each.decode_s for each in last))
        if entry is not first[0]:
            beside.append(sum(each.decode_s for each in once(*first)))
    return Timed(last, prefills, decodes, beside)
