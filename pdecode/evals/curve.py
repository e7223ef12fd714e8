"""The cost of a call here by its queries, and wall ratios predicted from it."""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from pdecode import files, knobs, precision, prompts
from pdecode.contracts import Model
from pdecode.evals.lineup import Entry
from pdecode.evals.rows import Row
from pdecode.hardware import roofline
from pdecode.hardware.roofline import Curve

NUM_COMPILED = 2  # calls compiled at a time


class Costs(NamedTuple):
    """Seconds of a call here, by its queries."""

    target: Curve
    drafter: Curve | None  # None: no method calls one
    is_kept: bool  # measured by an earlier comparison


class Place(NamedTuple):
    """The shapes that calls are measured at."""

    batch: int
    context: int  # cached tokens
    canvas: int  # queries of a whole canvas


class Priced(NamedTuple):
    """What calls cost on a machine that is not here, in any one unit."""

    name: str
    about: str
    target: Callable[[float], float]  # queries -> cost of a call
    drafter: Callable[[float], float]


def measure(
    entries: Sequence[Entry],
    rows: Sequence[Row],
    place: Place,
    folder: pathlib.Path | None,
) -> Costs:
    """Times calls of the target, and of the drafter as wide as `rows` made them.

    In `folder` the result is kept by device, versions, models and shapes (None: not).
    """
    target = entries[0].models[0], entries[0].params["model"]
    widths = tuple(sorted({*roofline.WIDTHS, place.canvas}))
    drafter, narrow = drafter_of(entries), ()
    wide = [drafter_width(row) for row in rows if row.drafter_calls]
    if drafter is not None and wide:
        # Widths between the measured ones are interpolated.
        narrow = tuple(sorted({1, 2, 2 ** math.ceil(math.log2(max(*wide, 1)))}))
    path = None
    if folder is not None:
        path = folder / f"{_key(target, drafter, place, widths, narrow)}.json"
        kept = _kept(path)
        if kept is not None:
            return kept
    pairs = [(*target, width) for width in widths]
    if drafter is not None:
        pairs += [(*drafter, width) for width in narrow]
    where = {"batch": place.batch, "context": place.context}
    with ThreadPoolExecutor(NUM_COMPILED) as pool:
        calls = list(
            pool.map(lambda pair: roofline.compiled_call(*pair, **where), pairs)
        )
    count = len(widths)
    found = Costs(
        roofline.measure(widths, calls[:count]),
        roofline.measure(narrow, calls[count:]) if narrow else None,
        False,
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(json.dumps(found._asdict()).encode())
    return found


def predict(rows: Sequence[Row], costs: Costs, there: Priced) -> tuple[Row, ...]:
    """Rows with the wall ratios that their counts would have at these costs.

    Tokens a call over the cost of a round: one target call of the queries computed, and
    the drafter's calls of theirs; over the same of the first row.
    """
    drafter = costs.drafter

    def here(queries: float) -> float:
        return 0.0 if drafter is None else drafter.at(queries)

    def ratio(row: Row, target, second) -> float:
        drafted = row.drafter_calls * second(drafter_width(row))
        cost = target(row.queries_per_call) + drafted
        return row.tokens_per_call * target(1) / cost

    found = [
        (ratio(row, costs.target.at, here), ratio(row, there.target, there.drafter))
        for row in rows
    ]
    # As measured ratios are, over the first row.
    return tuple(
        row._replace(
            predicted_here=each[0] / found[0][0], predicted_there=each[1] / found[0][1]
        )
        for row, each in zip(rows, found)
    )


def drafter_width(row: Row) -> float:
    """Queries computed by one of its drafter's calls, the mean."""
    return row.drafter_queries_computed / max(row.drafter_calls, 1e-9)


def drafter_of(entries: Sequence[Entry]) -> tuple[Model, Any] | None:
    """The drafter that the methods call, and its parameters."""
    for entry in entries:
        if len(entry.models) > 1 and isinstance(entry.models[1], Model):
            params = entry.params["drafter"]
            if knobs.needs(entry.recipe.method).get("drafter") == "spelled":
                params = params["own"]  # what it spells stands beside
            return entry.models[1], params
    return None


def priced(name: str, entries: Sequence[Entry], place: Place) -> Priced:
    """The named machine; ValueError listing the known ones."""
    if name in roofline.MEASURED:
        found = roofline.MEASURED[name]
        return Priced(name, found.about, found.curve.at, found.curve.at)
    model, params = entries[0].models[0], entries[0].params["model"]
    size = _size(params)
    machine = roofline.machine(name, size, _cache_bytes(model))
    second = drafter_of(entries)
    share = 0.0 if second is None else _size(second[1]) / size
    where = {"batch": place.batch, "context": place.context}
    about = (
        f"{machine.about}; {machine.num_params / 1e9:.3g} billion parameters of "
        f"{machine.bytes_per_param} bytes; a call takes the longer of reading weights "
        "and cache once and of 2 operations a weight and query"
    )
    return Priced(
        name,
        about,
        lambda queries: roofline.roofline(machine, queries, **where),
        lambda queries: roofline.roofline(machine, queries, scale=share, **where),
    )


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _cache_bytes(model: Model) -> float:
    """Bytes of one token in one row's cache."""

    def total(num_slots: int) -> int:
        row = prompts.from_rows([[0]], max_new_tokens=1)
        tree = jax.eval_shape(lambda: model.init_cache(row, num_slots))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return float(total(9) - total(8))


def _key(target, drafter, place: Place, widths, narrow) -> str:
    device = jax.devices()[0]
    facts = [
        jax.__version__,
        precision.level(),
        device.platform,
        device.device_kind,
        place,
        widths,
        narrow,
    ]
    for pair in (target, drafter):
        if pair is not None:
            shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), pair[1])
            facts += [pair[0].name, pair[0].attention, shapes]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _kept(path: pathlib.Path) -> Costs | None:
    """What is kept there; None if nothing is, or nothing that can be read."""
    try:
        target, drafter, _ = json.loads(path.read_text()).values()
        curves = [
            None if each is None else Curve(*map(tuple, each))
            for each in (target, drafter)
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return Costs(curves[0], curves[1], True) if curves[0] is not None else None
