"""Which method and which settings are fastest here: `pdecode tune`.

Successive halving (Jamieson and Talwalkar, 2015, arXiv:1502.07943) over measured runs:
every candidate on few prompts, the better half of each class on twice as many, until
one round has all of them. Ratios are to plain decoding, timed anew beside each repeat;
in the first rounds, where timings are few, they are averaged with what the measured
cost of a call predicts from the counts. What was measured is kept, line by line.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pdecode import knobs, recipes
from pdecode.evals import compare, curve, lineup
from pdecode.evals.lineup import Entry
from pdecode.evals.rows import Judged, Row, judged

CLASSES = ("lossless", "near", "lossy")
NEAR = 1.02  # bits a byte over the baseline's, up to which a lossy row is near it
FIRST = 1  # batches of the first round
LEAST = 2  # candidates of a class that are never dropped


class Candidate(NamedTuple):
    """A method with settings."""

    method: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """What is kept on disk under, and shown."""
        shown = (f"{key}={value}" for key, value in sorted(self.settings.items()))
        return f"{self.method}({', '.join(shown)})"


class Trial(NamedTuple):
    """One candidate on so many prompts."""

    candidate: Candidate
    num_prompts: int
    kind: str  # one of CLASSES
    ratio: float  # tokens a second over plain decoding's, the median
    ratio_half: tuple[float, float]  # the middle half of the repeats
    score: float  # what candidates are ranked by
    tokens_per_call: float
    tokens_per_s: float
    bits_per_byte: float | None


class Tuned(NamedTuple):
    """What was found."""

    trials: list[Trial]
    is_complete: bool  # every round was finished in time
    reference: str  # the method that ratios are to

    def best(self, kind: str) -> Trial | None:
        """The fastest candidate of a class, among those on most prompts."""
        found = [trial for trial in self.trials if trial.kind == kind]
        most = max((trial.num_prompts for trial in found), default=0)
        last = [trial for trial in found if trial.num_prompts == most]
        return max(last, key=lambda trial: trial.ratio, default=None)


def candidates(entries: Sequence[Entry]) -> list[Candidate]:
    """Each method of a line-up with its settings, and with neighbours of them."""
    found = []
    for entry in entries:
        if entry.name == lineup.BASELINE:
            continue
        method, base = entry.recipe.method, entry.settings
        found.append(Candidate(entry.name, base))
        for name, value in sorted(base.items()):
            for other in _neighbours(knobs.parameters(method)[name], value):
                found.append(Candidate(entry.name, {**base, name: other}))
    return found


def tune(
    settings: compare.Settings,
    *,
    minutes: float,
    log: pathlib.Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Searches for `minutes`; with `log` what it holds already is not measured again.

    Raises ValueError for what `compare.prepare` refuses, and for minutes that are not
    above 0.
    """
    if not minutes > 0:
        raise ValueError(f"minutes={minutes} must be above 0")
    deadline = time.monotonic() + 60 * minutes
    context = compare.prepare(settings)
    for note in context.notes:
        say(note)
    pool, reference = candidates(context.entries), context.entries[0].name
    bench = _Bench(context, log)
    trials: list[Trial] = []
    count, most = FIRST, len(context.batches)
    while True:
        count = min(count, most)
        fresh: list[Trial] = []
        for number, candidate in enumerate(pool, 1):
            if time.monotonic() > deadline and bench.kept(candidate, count) is None:
                return Tuned([*trials, *fresh], False, reference)
            prompts = count * settings.batch_size
            say(f"{candidate.name} on {prompts} prompts ({number} of {len(pool)})")
            found = bench.trial(candidate, count)
            if found is not None:
                fresh.append(found)
        trials += fresh
        if count == most:
            return Tuned(trials, True, reference)
        pool = [trial.candidate for trial in halved(fresh)]
        count *= 2


def halved(trials: Sequence[Trial]) -> list[Trial]:
    """The better half of each class, in the order of their scores."""
    kept = []
    for kind in CLASSES:
        some = sorted((t for t in trials if t.kind == kind), key=lambda t: -t.score)
        kept += some[: max(LEAST, math.ceil(len(some) / 2))]
    return kept


def classed(guarantee: str, bits: float | None, baseline: float | None) -> str:
    """The class of a row: its guarantee, or how near its text is to the baseline's."""
    if guarantee == "lossless":
        return "lossless"
    is_near = bits is not None and baseline is not None and bits <= NEAR * baseline
    return "near" if is_near else "lossy"


class _Bench:
    """Measures candidates on the first prompts of a context, beside plain decoding."""

    def __init__(self, context: compare.Context, log: pathlib.Path | None):
        self.context, self.log = context, log
        self.seen: dict[tuple[str, int], Trial | None] = {}
        self.first: tuple[Entry, Any] | None = None
        self.baselines: dict[int, Judged] = {}
        self.costs: curve.Costs | None = None
        if log is not None and log.exists():
            for line in log.read_text().splitlines():
                name, count, made = json.loads(line)
                self.seen[name, count] = _trial(made)

    def kept(self, candidate: Candidate, count: int):
        """Whether it was measured before: a tuple of the trial, or None."""
        key = candidate.name, count
        return (self.seen[key],) if key in self.seen else None

    def trial(self, candidate: Candidate, count: int) -> Trial | None:
        """The candidate on `count` batches; None where it does not fit after all."""
        kept = self.kept(candidate, count)
        if kept is not None:
            return kept[0]
        try:
            made = self.measured(candidate, count)
        except (ValueError, TypeError):  # a neighbour that its method refuses
            made = None
        self.seen[candidate.name, count] = made
        if self.log is not None:
            with self.log.open("a") as file:
                plain = None if made is None else made._asdict()
                file.write(json.dumps([candidate.name, count, plain]) + "\n")
        return made

    def measured(self, candidate: Candidate, count: int) -> Trial:
        """One measurement."""
        context = self.context
        size = context.settings.batch_size * count
        some = context._replace(
            batches=context.batches[:count], rows=context.rows[:size],
            completions=context.completions[:size],
        )  # fmt: skip
        if self.first is None:
            entry = context.entries[0]
            self.first = entry, compare.compiled(context, entry)
        if count not in self.baselines:
            self.baselines[count] = self.judged(some, *self.first, None)
        base = self.baselines[count].row
        entry = lineup.entry(
            recipes.find(candidate.method), dict(candidate.settings),
            _choice(context.settings), context.settings.max_new_tokens,
        )  # fmt: skip
        program = compare.compiled(context, entry)
        row = self.judged(some, entry, program, self.baselines[count]).row
        score = row.ratio
        if count < len(context.batches):
            score = math.sqrt(row.ratio * self.predicted(base, row, entry))
        return Trial(
            candidate, size, classed(row.guarantee, row.bits_per_byte,
                                      base.bits_per_byte),
            row.ratio, row.ratio_half, score, row.tokens_per_call, row.tokens_per_s,
            row.bits_per_byte,
        )  # fmt: skip

    def judged(self, some, entry, program, baseline) -> Judged:
        assert self.first is not None
        timed = compare.timed(some, entry, program, self.first)
        return judged(entry, program, timed, some.judging, baseline)

    def predicted(self, base: Row, row: Row, entry: Entry) -> float:
        """The ratio that the counts would have at the measured cost of a call."""
        context = self.context
        entries = [context.entries[0], entry]
        if row.drafter_calls or self.costs is None:
            folder = None if self.log is None else self.log.parent
            self.costs = curve.measure(entries, [base, row], context.place, folder)
        there = curve.priced(context.settings.hardware, entries, context.place)
        found = curve.predict([base, row], self.costs, there)[1].predicted_here
        return row.ratio if found is None else found


def _neighbours(parameter: knobs.Parameter, value: Any) -> list[Any]:
    """Values beside `value` that are worth a try."""
    kind = parameter.kind
    if isinstance(value, bool) or parameter.name in ("temperature", "seed"):
        return []
    if isinstance(kind, knobs.Size) and isinstance(value, int):
        found = {max(kind.low, value // 2), value * 2, max(kind.low, value - 1)}
    elif isinstance(kind, knobs.Knob) and isinstance(value, float) and kind.high <= 1:
        found = {round(value + step, 4) for step in (-0.2, -0.1, 0.05)}
        found = {each for each in found if kind.low < each < kind.high}
    else:
        return []
    return sorted(found - {value})


def _choice(settings: compare.Settings) -> lineup.Choice:
    return lineup.Choice(
        settings.model, settings.drafter, settings.dtype, settings.mesh, settings.fused
    )


def _trial(made: dict[str, Any] | None) -> Trial | None:
    if made is None:
        return None
    method, chosen = made["candidate"]
    # JSON has no tuples.
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    fields: dict[str, Any] = {
        **made,
        "candidate": Candidate(method, chosen),
        "ratio_half": tuple(made["ratio_half"]),
    }
    return Trial(**fields)
