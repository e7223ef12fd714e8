"""A model's own right answers to the tasks, as rows to train on.

    python -m pdecode.evals.parallelbench.answers task_masked results/task_answers

One token a step at temperature 0, as slow and careful as the model can: what
certainty forcing and the filter of Learn2PD learn from. Prompts are those of the
training split, of seeds that no training run has; wrong answers are left out.
"""

import argparse
import sys

import numpy as np

from pdecode import assembly, methods
from pdecode.data import packing
from pdecode.data.parallelbench import tasks
from pdecode.data.parallelbench.rows import ROW_LEN
from pdecode.evals.parallelbench import suite
from pdecode.models.bytes import EOS_ID

SEEDS = {"train": 2**62, "validation": 2**62 + 1}
_BATCH = 200  # instances of a task decoded at once
_SLOW = suite.Entry(
    "own answers",
    methods.llada.__name__,
    suite.QUOTA,
    (1,),
    {"order": "low_confidence"},
)


def rows(model, params, seed: int, num: int) -> tuple[np.ndarray, dict[str, int]]:
    """uint16 [N, ROW_LEN] in a random order, and how many each task gave of `num`.

    A row is a prompt, the model's answer where it is right, and EOS to the row's end.
    """
    found: list[np.ndarray] = []
    counts = dict.fromkeys(tasks.NAMES, 0)
    for start in range(0, num, _BATCH):
        source = suite.trained(
            model, params, min(_BATCH, num - start), seed + start, split="train"
        )
        for batch in source.batches:
            made = suite.decoded(_SLOW, 1, source, batch, seed=0).generation
            for index, tokens in suite.answers(made):
                if not batch.is_right(index, tokens, True):
                    continue
                length = int(made.start[index]) + len(tokens)
                row = np.full(ROW_LEN, EOS_ID, np.uint16)
                row[:length] = made.tokens[index][:length]
                found.append(row)
                counts[batch.tasks[index]] += 1
    if not found:
        raise ValueError("no answer of the model is right: there is nothing to learn")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(found))
    return np.stack(found)[order], counts


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("model", help="an embedded model of the tasks, or a run's folder")
    made.add_argument("folder", help="to write, with train.npy and validation.npy")
    made.add_argument("--instances", type=int, default=1000, help="of each task")
    args = made.parse_args(arguments)
    model, params, _ = assembly.load(args.model)
    streams = {}
    for split, num in (("train", args.instances), ("validation", 50)):
        some, counts = rows(model, params, SEEDS[split], num)
        streams[split] = some.ravel()
        print(split, len(some), "rows, of", num, "each:", counts)
    packing.save_splits(args.folder, **streams)


if __name__ == "__main__":
    main(sys.argv[1:])
