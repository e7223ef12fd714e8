"""A decode as plain Python data: texts, counts and times."""

from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode.contracts import STOPPED_BY, Generation
from pdecode.decode import Stats
from pdecode.families.rows import is_eos

# `Stats` under short names; lists by row, but for the last two.
_SHORT = {
    "calls": "num_calls",
    "prefill_calls": "num_prefill_calls",
    "prefill_tokens": "num_prefill_tokens",
    "query_tokens": "num_query_tokens",
    "query_tokens_computed": "num_query_tokens_computed",
    "draft_calls": "num_draft_calls",
    "draft_tokens": "num_draft_tokens",
    "draft_tokens_computed": "num_draft_tokens_computed",
    "prefill_draft_calls": "num_prefill_draft_calls",
    "prefill_draft_tokens": "num_prefill_draft_tokens",
    "committed": "num_committed",
    "proposed": "num_proposed",
    "revoked": "num_revoked",
    "steps": "num_steps",
    "dispatches": "num_dispatches",
}


class Result(NamedTuple):
    """Plain Python data; `str(result)` is the text. One entry a row in every list."""

    tokens: list[list[int]]  # the generation before EOS, or all with keep_eos_tail
    lengths: list[int]  # generated tokens before the first EOS
    text: list[str]
    stopped_by: list[str]  # one of contracts.STOPPED_BY
    stats: dict[str, Any]  # lists by row, and "steps" and "dispatches" of the batch
    timing: dict[str, float]  # seconds: compile_s, prefill_s, decode_s
    method: str
    model: str
    drafter: str | None  # or the heads
    settings: dict[str, Any]  # the defaults among them
    row_ids: list[int]  # what named each row's noise
    steps: list[list[int]] = []  # that committed each token, from 0
    probs: list[list[float]] = []  # of each token, raw, when it was committed
    pieces: list[list[str]] = []  # the text that each token adds
    prompts: list[str] = []
    predicts: str = "next"  # of the model: next | masked | uniform
    vocab_size: int = 0
    # What each step did, where it was recorded: {"events", "proposed"} a row, see
    # `replay.record.Trace`.
    recorded: list[dict[str, Any]] | None = None

    def __str__(self) -> str:
        return "\n\n".join(self.text)

    def __repr__(self) -> str:
        count = len(self.text)
        rows = f"{count} row{'s' if count > 1 else ''}"
        return f"Result({self.method} with {self.model}, {rows}: {self.summary})"

    def _repr_html_(self) -> str:
        """The replay, in a notebook."""
        from pdecode.replay import page, record

        return page.frame(record.of_result(self))

    def replay(self, path: str) -> None:
        """Writes the replay as one HTML page that needs no network."""
        from pdecode.replay import page, record

        page.write(record.of_result(self), path)

    @property
    def summary(self) -> str:
        """Tokens, calls and seconds of all rows, in words."""
        calls, tokens = (sum(self.stats[name]) for name in ("calls", "committed"))
        return (
            f"{tokens} tokens, {calls} calls ({tokens / max(calls, 1):.2f} tokens a "
            f"call), {self.timing['prefill_s'] + self.timing['decode_s']:.2f} s, "
            f"compiled in {self.timing['compile_s']:.1f} s"
        )

    @property
    def not_finite(self) -> list[int]:
        """Rows that ended because a statistic was no number."""
        ends = enumerate(self.stopped_by)
        return [index for index, reason in ends if reason == "not_finite"]


def result_of(
    job: Any,
    generation: Generation,
    stats: Stats,
    timing: dict[str, float],
    commit_step: Any,  # int32 [B, L]
    *,
    keep_eos_tail: bool = False,
) -> Result:
    """Plain data out of arrays; `job` is a `generation.Job`."""
    from pdecode.replay import record

    generation, stats = jax.tree.map(np.asarray, (generation, stats))
    commit_step = np.asarray(commit_step)
    rows, lengths, reasons, steps, probs = [], [], [], [], []
    for b, start in enumerate(generation.start):
        length = int(generation.lengths[b])
        reason = STOPPED_BY[generation.stopped_by[b]]
        here = slice(start, start + length)
        row = generation.tokens[b, here]
        steps.append(commit_step[b, here].tolist())
        probs.append(probabilities(generation.log_probs[b, here]))
        if keep_eos_tail:
            # The decode knew of no EOS: it fills the row, and the end is found here.
            ends = np.flatnonzero(np.asarray(is_eos(row, job.eos_ids)))
            length, reason = (int(ends[0]), "eos") if ends.size else (length, reason)
        rows.append(row.tolist())
        lengths.append(length)
        reasons.append(reason)
    return Result(
        tokens=rows,
        lengths=lengths,
        text=[job.tokenizer.decode(row[:n]) for row, n in zip(rows, lengths)],
        stopped_by=reasons,
        stats=stats_by_row(stats),
        timing=timing,
        method=job.method_name,
        model=job.model_name,
        drafter=job.drafter_name,
        settings=job.used,
        row_ids=job.row_ids,
        steps=steps,
        probs=probs,
        pieces=[record.pieces(row, job.tokenizer) for row in rows],
        prompts=[
            job.tokenizer.decode(row[:start].tolist())
            for row, start in zip(generation.tokens, generation.start)
        ],
        predicts=job.models[0].predicts,
        vocab_size=job.models[0].vocab_size,
    )


def probabilities(log_probs: Any) -> list[float]:
    """exp of them, to five digits: what a page or a file needs."""
    return np.exp(np.asarray(log_probs, float)).round(5).tolist()


def stats_by_row(stats: Stats) -> dict[str, Any]:
    """`Stats` under short names, as lists and ints."""
    found = {
        short: np.asarray(getattr(stats, name)).tolist()
        for short, name in _SHORT.items()
    }
    calls = np.maximum(np.asarray(stats.num_calls), 1)
    per_call = (np.asarray(stats.num_committed) / calls).round(4).tolist()
    return {**found, "tokens_per_call": per_call}


def texts(generation: Generation, tokenizer: Any) -> list[str]:
    """The generated text of every row, before its EOS."""
    tokens, starts, lengths = map(np.asarray, generation[:3])
    return [
        tokenizer.decode(row[start : start + length].tolist())
        for row, start, length in zip(tokens, starts, lengths)
    ]
