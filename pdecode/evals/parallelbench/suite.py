"""Methods by knobs on the tasks: accuracy against tokens a call.

Every entry is one method with one knob that moves from careful to fast. Thresholds are
tracers, so that an entry compiles once a shape; how many steps a canvas takes is a
size, and compiles once each. All instances of a shape are one batch.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pdecode import knobs, methods, prompts, rng
from pdecode import programs as programs_module
from pdecode.contracts import STOPPED_BY, Generation, Model, Params
from pdecode.data.parallelbench import tasks
from pdecode.methods import variants
from pdecode.models.bytes import tokenizer

# Tasks with several right answers: their tokens depend on each other.
SEVERAL = (
    "shuffle",
    "insert_random",
    "remove_random",
    "replace_random",
    "latin_square",
)


class Shape(NamedTuple):
    """Tasks decoded in one batch, and the sizes of its canvas."""

    tasks: tuple[str, ...]
    max_prompt: int  # tokens, BOS among them
    max_new_tokens: int


_GRIDS = ("latin_square", "sudoku")
SHAPES = (
    Shape(tuple(name for name in tasks.NAMES if name not in _GRIDS), 11, 8),
    Shape(_GRIDS, 19, 16),
)


class Entry(NamedTuple):
    """A method, and one knob from careful to fast."""

    name: str
    method: str
    knob: str  # "tokens a step": `steps` is a canvas over it
    values: tuple[float, ...]
    settings: dict[str, Any]

    def at(self, value: float, max_new_tokens: int) -> dict[str, Any]:
        """The method's settings at a value of the knob."""
        if self.knob == QUOTA:
            return {**self.settings, "steps": max_new_tokens // int(value)}
        return {**self.settings, self.knob: value}


QUOTA = "tokens a step"
_STEPS = (1, 2, 4, 8)
_LEVELS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def _quota(order: str, **settings: Any) -> Entry:
    name = f"llada {order}" + (" sampled" if settings else "")
    return Entry(name, "llada", QUOTA, _STEPS, {"order": order, **settings})


ENTRIES = (
    _quota("sequential"),
    _quota("random"),
    _quota("low_confidence"),
    _quota("entropy"),
    _quota("margin"),
    _quota("random", temperature=1.0),
    Entry("fast_dllm threshold", "fast_dllm", "threshold", _LEVELS, {}),
    Entry("fast_dllm factor", "fast_dllm", "factor", (0.7, 1.0, 1.3, 1.6, 1.9), {}),
    Entry("eb_sampler", "eb_sampler", "gamma", (0.0, 0.01, 0.1, 0.5, 1.0, 2.0), {}),
    Entry("klass", "klass", "threshold", (0.9, 0.8, 0.7, 0.6, 0.5), {}),
    Entry("local_leap", "local_leap", "threshold", _LEVELS, {"radius": 2}),
    Entry("dimple", "dimple", "alg_p_threshold", (2.0, 0.95, 0.8, 0.6, 0.5), {}),
    Entry("wino", "wino", "threshold", (0.9, 0.8, 0.7, 0.6, 0.5), {}),
    Entry("rcr", "rcr", QUOTA, _STEPS, {}),
    Entry("remdm_llada", "remdm_llada", QUOTA, (1, 2, 4), {}),
)
QUICK = (
    "llada sequential",
    "llada low_confidence",
    "llada random sampled",
    "fast_dllm threshold",
    "fast_dllm factor",
    "eb_sampler",
)


def entries(model: Model) -> list[Entry]:
    """`ENTRIES` as `model` can do them: one in blocks decodes no more than a block in a
    step, and the blocks of its attention.
    """
    if model.attention != "block_causal":
        return list(ENTRIES)
    length, made = model.block_len or 1, []
    for each in ENTRIES:
        if each.knob == QUOTA:
            some = tuple(value for value in each.values if value <= length)
            each = each._replace(values=some)
        if each.method == methods.wino.__name__:  # blocks by default, unlike the others
            each = each._replace(settings={**each.settings, "block_length": length})
        made.append(each)
    return made


class Cell(NamedTuple):
    """One entry at one value on one task."""

    name: str
    knob: str
    value: float
    task: str
    num: int  # instances
    right: int  # by the strict reading
    right_lenient: int
    tokens: int  # of the answers, the EOS included
    calls: int
    queries: int  # lanes evaluated
    not_finished: int  # rows that ended with a position open


class Batch(NamedTuple):
    """Rows that decode together, and what is right in each."""

    max_new_tokens: int
    prompt: Any
    params: Params
    tasks: list[str]  # of the rows
    # (row, tokens before EOS, is_strict) -> whether they answer
    is_right: Callable[[int, list[int], bool], bool]


class Source(NamedTuple):
    """What decodes: one model, and its batches."""

    model: Model
    batches: list[Batch]
    settings: dict[str, Any]  # of every method, beside the entry's


def check(entry: Entry, model: Model, max_new_tokens: int) -> None:
    """Builds the entry's decoders; raises what the method does for what is wrong."""
    method, own = variants.resolve(entry.method)
    for value in entry.values:
        settings = {
            **own,
            **entry.at(value, max_new_tokens),
            "max_new_tokens": max_new_tokens,
        }
        traced, sizes = knobs.split(method, settings)
        method(model, **sizes, **traced)


def trained(
    model: Model, params: Params, num: int, seed: int, split: str = "heldout"
) -> Source:
    """A byte model on `num` instances of every task, held out, in two batches."""
    batches = [_batch(shape, model, params, num, seed, split) for shape in SHAPES]
    return Source(model, batches, {})


def _batch(
    shape: Shape, model: Model, params: Params, num: int, seed: int, split: str
) -> Batch:
    some = [
        each
        for name in shape.tasks
        for each in tasks.generate(name, seed, num, split=split)
    ]
    rows = [tokenizer.encode(each.prompt) for each in some]
    made = prompts.from_rows(
        rows,
        max_new_tokens=shape.max_new_tokens,
        row_ids=prompts.row_ids(rows),
        pad_to=shape.max_prompt,
        model=model,
    )

    def is_right(row: int, ids: list[int], is_strict: bool) -> bool:
        return tasks.is_right(some[row], tokenizer.decode(ids), is_strict=is_strict)

    return Batch(
        shape.max_new_tokens, made, params, [each.task for each in some], is_right
    )


def measure(entry: Entry, value: float, source: Source, seed: int) -> list[Cell]:
    """One cell a task, in the order of the batches."""
    found: dict[str, Cell] = {}
    for batch in source.batches:
        made = decoded(entry, value, source, batch, seed)
        for cell in _cells(entry, value, batch, made):
            if cell.task in found:
                cell = _added(found[cell.task], cell)
            found[cell.task] = cell
    return list(found.values())


def decoded(entry: Entry, value: float, source: Source, batch: Batch, seed: int) -> Any:
    """A batch decoded by an entry at a value: generation, stats and times."""
    method, own = variants.resolve(entry.method)
    settings = {**own, **source.settings, **entry.at(value, batch.max_new_tokens)}
    programs = programs_module.compiled(
        method, source.model, batch.params, batch.prompt, is_dated=False,
        max_new_tokens=batch.max_new_tokens, **settings,
    )  # fmt: skip
    return programs_module.timed(programs, batch.params, batch.prompt, rng.key(seed))


def answers(made: Generation) -> Iterator[tuple[int, list[int]]]:
    """Each row's number and its tokens before EOS."""
    starts, lengths = np.asarray(made.start), np.asarray(made.lengths)
    for b, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        yield b, made.tokens[b, start : start + length].tolist()


def _cells(entry: Entry, value: float, batch: Batch, decoded) -> Iterator[Cell]:
    made, stats = decoded.generation, decoded.stats
    lengths = np.asarray(made.lengths)
    ended = np.asarray(made.stopped_by) == STOPPED_BY.index("eos")
    right, lenient = (
        np.array([batch.is_right(b, row, is_strict) for b, row in answers(made)])
        for is_strict in (True, False)
    )
    columns = {
        "num": np.ones_like(lengths),
        "right": right,
        "right_lenient": lenient,
        "tokens": lengths + ended,
        "calls": np.asarray(stats.num_calls),
        "queries": np.asarray(stats.num_query_tokens),
        "not_finished": ~(ended | (lengths == batch.max_new_tokens)),
    }
    tasks_of = np.array(batch.tasks)
    for name in dict.fromkeys(batch.tasks):
        sums = {k: int(each[tasks_of == name].sum()) for k, each in columns.items()}
        yield Cell(entry.name, entry.knob, float(value), name, **sums)


def _added(one: Cell, other: Cell) -> Cell:
    return Cell(*one[:4], *(a + b for a, b in zip(one[4:], other[4:], strict=True)))
