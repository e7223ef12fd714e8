"""One line of a comparison: counted, timed, judged."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pdecode import programs as programs_module
from pdecode import results
from pdecode.contracts import STOPPED_BY
from pdecode.evals import quality, tasks
from pdecode.evals.lineup import Entry
from pdecode.replay import record


class Row(NamedTuple):
    """One method's numbers; None where one has no meaning or a judge is missing."""

    name: str
    settings: dict[str, Any]
    guarantee: str  # one of contracts.GUARANTEES
    temperature: float
    tokens_per_call: float
    calls_per_row: float
    queries_per_token: float  # asked for
    queries_per_token_computed: float  # padding lanes included
    num_committed: int  # tokens of all rows
    mean_accepted: float | None  # drafted tokens kept a call, the next token apart
    tokens_per_s: float  # of decoding alone, the median of the repeats
    ratio: float  # of tokens a second to the first method's, timed beside it; median
    prefill_s: float  # median, all batches
    decode_s: tuple[float, ...]  # repeats, all batches
    compile_s: float
    num_cached: int  # of its two programs
    identical: str | None  # lossless methods: rows equal to the baseline's greedy ones
    differences: dict[str, list]  # near_ties and mismatches, see quality.Identity
    bits_per_byte: float | None  # of the generated text, under the judge
    distinct_4: float | None
    exact_match: float | None
    white_space: float | None = None  # share of the text's characters
    tokens_per_s_half: tuple[float, float] = (0.0, 0.0)  # the middle half of repeats
    ratio_half: tuple[float, float] = (0.0, 0.0)  # the middle half of these ratios
    queries_per_call: float = 1.0  # computed
    drafter_calls: float = 0.0  # a round: calls of the drafter's own model
    drafter_queries: float = 0.0  # a round, asked for
    drafter_queries_computed: float = 0.0
    prefill_drafter_calls: float = 0.0  # a row
    predicted_here: float | None = None  # wall ratio by the measured cost of a call
    predicted_there: float | None = None  # and by what is known of the named hardware
    num_not_finite: int = 0  # rows that ended because a statistic was no number
    texts: tuple[str, ...] = ()
    commit_steps: tuple[list[int], ...] = ()  # a list a row, one number a token
    pieces: tuple[list[str], ...] = ()  # the text that each token adds
    probs: tuple[list[float], ...] = ()  # of each token when it was committed

    @property
    def is_faster(self) -> bool:
        """Than the first row, by more than the timings are spread."""
        return self.ratio_half[0] > 1

    @property
    def is_slower(self) -> bool:
        return self.ratio_half[1] < 1


class Timed(NamedTuple):
    """Repeated decodes of all batches."""

    decodes: list[programs_module.Decoded]  # of the last repeat
    prefill_s: list[float]
    decode_s: list[float]
    beside_s: list[float]  # the first method's, timed anew beside each of them


class Judging(NamedTuple):
    """What the text of every method is held against."""

    judge: quality.Judge | None
    prompts: list[list[int]]  # ids
    completions: list[tasks.Completion]
    tokenizer: Any
    near_tie: float  # margin below which either of two tokens may win


class Judged(NamedTuple):
    """A row, and what the rows after the first are compared with."""

    row: Row
    with_eos: list[list[int]]
    margins: list[np.ndarray]


class _Text(NamedTuple):
    ids: list[list[int]]
    with_eos: list[list[int]]
    steps: list[list[int]]
    probs: list[list[float]]
    num_not_finite: int


def judged(
    entry: Entry,
    programs: programs_module.Programs,
    timed: Timed,
    against: Judging,
    baseline: Judged | None,
) -> Judged:
    """The row of one method; `baseline` is the first method's, None for itself."""
    made = _text(timed)
    texts = [against.tokenizer.decode(row) for row in made.ids]
    bits, margins, same = _quality(entry, made, against, baseline)
    low, middle, high = np.percentile(timed.decode_s, (25, 50, 75))
    committed = totals(timed)["num_committed"]
    ratio = ratios(timed, committed, None if baseline is None else baseline.row)
    row = Row(
        name=entry.name,
        settings=entry.settings,
        guarantee=entry.guarantee,
        temperature=entry.temperature,
        num_committed=committed,
        tokens_per_s=committed / middle,
        tokens_per_s_half=(committed / high, committed / low),
        ratio=ratio[1],
        ratio_half=(ratio[0], ratio[2]),
        prefill_s=statistics.median(timed.prefill_s),
        decode_s=tuple(timed.decode_s),
        compile_s=programs.compile_s,
        num_cached=programs.num_cached,
        identical=None if same is None else str(same),
        differences={"near_ties": [], "mismatches": []}
        if same is None
        else {"near_ties": same.near_ties, "mismatches": same.mismatches},
        bits_per_byte=bits,
        distinct_4=quality.distinct(made.ids),
        white_space=quality.white_space(texts),
        exact_match=_exact_match(against.completions, texts),
        num_not_finite=made.num_not_finite,
        texts=tuple(texts),
        commit_steps=tuple(made.steps),
        pieces=tuple(record.pieces(row, against.tokenizer) for row in made.ids),
        probs=tuple(made.probs),
        **counted(timed, len(texts), entry.models[0].predicts == "next"),
    )
    return Judged(row, made.with_eos, margins)


def ratios(timed: Timed, committed: int, first: Row | None) -> tuple[float, ...]:
    """Lower quartile, median and upper quartile of the speeds over the first method's.

    Each repeat is held against one of the first method's beside it: a machine that
    slows down for a while slows both.
    """
    if first is None:
        return 1.0, 1.0, 1.0
    pairs = np.array(timed.beside_s) / np.array(timed.decode_s)
    found = np.percentile(pairs * committed / first.num_committed, (25, 50, 75))
    return tuple(float(each) for each in found)


def counted(timed: Timed, num_rows: int, is_draft: bool) -> dict[str, Any]:
    """The counts of a Row: by token, by target call ("a round"), by row."""
    counts = totals(timed)
    calls, committed = counts["num_calls"], counts["num_committed"]
    per_call, per_token = max(calls, 1), max(committed, 1)
    return {
        "tokens_per_call": committed / per_call,
        "calls_per_row": calls / num_rows,
        "queries_per_token": counts["num_query_tokens"] / per_token,
        "queries_per_token_computed": counts["num_query_tokens_computed"] / per_token,
        # A round of draft-and-verify emits one token more than it accepts.
        "mean_accepted": (committed - calls) / per_call if is_draft else None,
        "queries_per_call": counts["num_query_tokens_computed"] / per_call,
        "drafter_calls": counts["num_draft_calls"] / per_call,
        "drafter_queries": counts["num_draft_tokens"] / per_call,
        "drafter_queries_computed": counts["num_draft_tokens_computed"] / per_call,
        "prefill_drafter_calls": counts["num_prefill_draft_calls"] / num_rows,
    }


def totals(timed: Timed) -> dict[str, int]:
    """Counters of all rows of one repeat, added up."""
    stats = [each.stats for each in timed.decodes]
    return {
        name: int(sum(getattr(each, name).sum() for each in stats))
        for name in stats[0]._fields
        if name.startswith("num_")
    }


def _text(timed: Timed) -> _Text:
    found = _Text([], [], [], [], 0)
    bad = 0
    for decoded in timed.decodes:
        made = decoded.generation
        for b, (start, length) in enumerate(zip(made.start, made.lengths)):
            reason = STOPPED_BY[made.stopped_by[b]]
            bad += reason == "not_finite"
            whole = slice(start, start + length + (reason == "eos"))
            found.with_eos.append(made.tokens[b, whole].tolist())
            found.ids.append(made.tokens[b, start : start + length].tolist())
            found.steps.append(decoded.commit_step[b, whole].tolist())
            found.probs.append(results.probabilities(made.log_probs[b, whole]))
    return found._replace(num_not_finite=bad)


def _quality(entry: Entry, made: _Text, against: Judging, baseline: Judged | None):
    """(bits per byte, margins, identity with the greedy rows), None unless judged."""
    if against.judge is None:
        return None, [], None
    scores = quality.judge(against.judge, against.prompts, made.with_eos)
    margins = [each.margins for each in scores]
    # EOS is judged for the comparison, but it is no text.
    inner = [
        quality.Judged(each.log_probs[: len(row)], each.margins[: len(row)])
        for each, row in zip(scores, made.ids)
    ]
    bits = quality.bits_per_byte(inner, made.ids, against.tokenizer)
    is_greedy = entry.guarantee == "lossless" and entry.temperature == 0
    if not is_greedy:
        return bits, margins, None
    wanted = (made.with_eos, margins) if baseline is None else baseline[1:]
    return bits, margins, quality.identity(made.with_eos, *wanted, against.near_tie)


def _exact_match(completions: Sequence[tasks.Completion], texts) -> float | None:
    """Share of the answers given; None for prompts that have none."""
    pairs = [(each.answer, text) for each, text in zip(completions, texts)]
    found = [tasks.is_completed(*pair) for pair in pairs if pair[0]]
    return float(np.mean(found)) if found else None
