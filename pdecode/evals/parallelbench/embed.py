"""Stores a finished run on the tasks as an embedded model, with what it reaches.

    python -m pdecode.evals.parallelbench.embed results/task_masked task_masked

The weights are stored in bfloat16 and the figures are of these: the share of held-out
instances that are answered right with one token a step at temperature 0, task by task,
with Wilson's 95 % interval.
"""

import argparse
import pathlib
import shlex
import sys
from typing import Any

import ml_dtypes

from pdecode import methods
from pdecode.contracts import Model, Params
from pdecode.evals import quality
from pdecode.evals.parallelbench import suite
from pdecode.models import embedded, transformer
from pdecode.train import export

NUM = 200  # instances of each task
SEED = 2**63  # of the instances, which no training run has
ORDERS = ("low_confidence", "sequential")


def accuracies(model: Model, params: Params, num: int = NUM) -> dict[str, Any]:
    """Order -> task -> what one token a step gets right, of held-out instances."""
    source = suite.trained(model, params, num, SEED)
    return {order: _accuracies(order, source) for order in ORDERS}


def _accuracies(order: str, source: suite.Source) -> dict[str, Any]:
    entry = suite.Entry(
        order, methods.llada.__name__, suite.QUOTA, (1,), {"order": order}
    )
    made = {}
    for cell in suite.measure(entry, 1, source, seed=0):
        low, high = quality.wilson(cell.right, cell.num)
        made[cell.task] = {
            "right": cell.right,
            "of": cell.num,
            "percent": round(100 * cell.right / cell.num, 2),
            "interval_95": [round(100 * low, 2), round(100 * high, 2)],
        }
    return made


def embed(
    workdir: pathlib.Path, name: str, folder: pathlib.Path = embedded.FOLDER
) -> dict[str, Any]:
    """Writes `name` into a folder and returns its record.

    ValueError for a folder without a finished run on the tasks.
    """
    params, record = embedded.read_pair(workdir, "weights")
    if record["config"].get("data") != "tasks":
        raise ValueError(f"{workdir} holds no run on data='tasks'")
    rounded = export.as_stored(params)
    model = transformer.make_model(embedded.transformer_config(record))
    record["command"] = _without_place(record["command"])
    record["accuracy"] = {
        "about": "one token a step, temperature 0, held-out prompts, strict reading",
        "seed": SEED,
        **accuracies(model, rounded),
    }
    export.write(folder, name, rounded, record, dtype=ml_dtypes.bfloat16)
    return record


def _without_place(command: str | None) -> str | None:
    """A command without its --out, a place on one machine."""
    if command is None:
        return None
    parts = shlex.split(command)
    if "--out" in parts:
        at = parts.index("--out")
        del parts[at : at + 2]
    return shlex.join(parts)


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("workdir", type=pathlib.Path)
    made.add_argument("name")
    made.add_argument("--folder", type=pathlib.Path, default=embedded.FOLDER)
    args = made.parse_args(arguments)
    record = embed(args.workdir, args.name, args.folder)
    for order in ORDERS:
        for task, found in record["accuracy"][order].items():
            low, high = found["interval_95"]
            print(f"{order:16} {task:16} {found['percent']:6.2f} {low:.1f}-{high:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
