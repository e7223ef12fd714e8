"""One method over the values of its knobs: compiled once, counted, as a table.

table = pdecode.sweep("fast_dllm", prompts=["def f("], threshold=[0.5, 0.7, 0.9])
table.plot("sweep.png")
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdecode import generation, knobs, names, recipes
from pdecode.contracts import Model
from pdecode.evals import quality
from pdecode.models import embedded
from pdecode.results import Result

PROMPTS = ("def fib(n):", "import os\n", "class Queue:\n", "for i in range(")
_COUNTS = (
    "tokens_per_call", "calls", "tokens", "revoked", "decode_s", "tokens_per_s",
    "compile_s", "bits_per_byte", "distinct_4",
)  # fmt: skip


class Sweep(NamedTuple):
    """A row for every combination of values; `str` prints them as a table."""

    method: str
    model: str
    varied: tuple[str, ...]  # knobs that were given several values
    rows: list[dict[str, Any]]  # the varied knobs, then counts over all prompts
    results: list[Result]  # of each row, texts among them

    def __repr__(self) -> str:
        names_ = [*self.varied, *_COUNTS]
        shown = [n for n in names_ if any(row[n] is not None for row in self.rows)]
        cells = [shown, *([_cell(row[n]) for n in shown] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(shown))]
        head = f"{self.method} with {self.model}, {len(self.results[0].text)} prompts"
        return "\n".join(
            [
                head,
                *("  ".join(f"{c:>{w}}" for c, w in zip(row, widths)) for row in cells),
            ]
        )

    __str__ = __repr__

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame; ImportError where pandas is not installed."""
        import pandas

        return pandas.DataFrame(self.rows)

    def plot(self, path: str | None = None) -> Any:
        """Tokens a call, and bits a byte if judged, over the first varied knob.

        Returns the matplotlib figure; with `path` it is written there too.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        knob, *others = self.varied or ("max_new_tokens",)
        for others_are, rows in _lines(self.rows, others):
            places = [row.get(knob, 0) for row in rows]
            label = ", ".join(f"{n}={v}" for n, v in zip(others, others_are))
            heights = [row["tokens_per_call"] for row in rows]
            axes.plot(places, heights, "o-", label=label or "tokens a call")
            bits = [row["bits_per_byte"] for row in rows]
            if None not in bits:
                second = axes.twinx() if not figure.axes[1:] else figure.axes[1]
                second.plot(places, bits, "s--", color="grey")
                second.set_ylabel("bits a byte (dashed; lower is likelier)")
        axes.set_xlabel(knob)
        axes.set_ylabel("tokens a call")
        axes.set_title(f"{self.method} with {self.model}")
        if others:
            axes.legend(fontsize=8)
        if path is not None:
            figure.savefig(path, dpi=130)
        return figure


def sweep(
    method: str | Callable,
    model: str | None = None,
    prompts: str | Sequence = PROMPTS,
    *,
    judge: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Sweep:
    """Decodes `prompts` with every combination of the values in `settings`.

    A setting that is a list takes each of its values; others are the same throughout.
    Knobs change nothing that is compiled; a size or choice with several values compiles
    once for each. `judge`, a causal model ("target" for the embedded ones, which is the
    default there), gives bits a byte; other arguments are those of `pdecode.generate`.
    Raises ValueError.
    """
    recipe = recipes.find(method)
    known = knobs.parameters(recipe.method)
    own = ("drafter", "max_new_tokens", "temperature", "dtype", "mesh", "row_ids")
    own += ("fused",)
    for name in settings:
        if name not in known and name not in own:
            raise ValueError(
                f"{recipe.label} has no knob or size {name!r}; "
                f"{names.listed(name, known)}"
            )
    lists = {name: value for name, value in settings.items() if isinstance(value, list)}
    empty = [name for name, value in lists.items() if not value]
    if empty:
        raise ValueError(f"{empty[0]}=[] has no value to try")
    fixed = {name: value for name, value in settings.items() if name not in lists}
    rows, results = [], []
    for values in itertools.product(*lists.values()):
        here = dict(zip(lists, values))
        job = generation.prepare(
            prompts, method=method, model=model, **{**fixed, **here}
        )
        made = generation.decoded(job, seed=seed)
        bits = _judged(job, made, judge)
        rows.append({**here, **_counted(made), "bits_per_byte": bits})
        results.append(made)
    return Sweep(results[0].method, results[0].model, tuple(lists), rows, results)


def _counted(made: Result) -> dict[str, Any]:
    calls, tokens = sum(made.stats["calls"]), sum(made.stats["committed"])
    seconds = made.timing["decode_s"]
    return {
        "tokens_per_call": tokens / max(calls, 1),
        "calls": calls,
        "tokens": tokens,
        "revoked": sum(made.stats["revoked"]),
        "decode_s": seconds,
        "tokens_per_s": tokens / max(seconds, 1e-9),
        "compile_s": made.timing["compile_s"],
        "distinct_4": quality.distinct(made.tokens),
    }


def _judged(job: generation.Job, made: Result, name: str | None) -> float | None:
    """Bits a byte under the judge `name`; None without one of the same vocabulary."""
    is_text = job.model_name not in embedded.SETS["digits"]
    if name is None and job.model_name in embedded.NAMES and is_text:
        name = "target"
    if name is None:
        return None
    model, params, _ = generation.load(name)
    if not isinstance(model, Model) or model.predicts != "next":
        raise ValueError(f"judge={name!r} is no causal model: it can judge no text")
    if model.vocab_size != job.models[0].vocab_size:
        raise ValueError(
            f"judge={name!r} has {model.vocab_size} token ids and {made.model} has "
            f"{job.models[0].vocab_size}: they need one vocabulary"
        )
    tokens, lengths = np.asarray(job.prompt.tokens), np.asarray(job.prompt.lengths)
    before = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    width = tokens.shape[1] + job.settings["max_new_tokens"] + 1
    judge = quality.Judge(model, params, len(before), width)
    scored = quality.judge(judge, before, made.tokens)
    return quality.bits_per_byte(scored, made.tokens, job.tokenizer)


def _lines(rows: Sequence[dict], others: Sequence[str]):
    """Rows that share the values of all knobs but the first: (values, rows)."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in others), []).append(row)
    return found.items()


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
