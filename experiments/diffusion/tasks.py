"""Accuracy against tokens a call on the tasks, before and after training for it.

    python experiments/diffusion/tasks.py --certainty results/task_certainty \
        --filter results/task_filter --out experiments/diffusion/tasks.json

Decodes the same held-out instances by every setting; intervals of tokens a call, and of
the ratio of calls to those of the careful decode of the embedded model, are bootstrap's
over instances (95 %, 1000 resamples), those of accuracy Wilson's.
"""

import argparse
import json
import pathlib

import numpy as np

from pdecode import assembly
from pdecode.evals import quality
from pdecode.evals.parallelbench import suite
from pdecode.evals.parallelbench.summary import kind_of

SEED = 2**63 + 7  # of the instances, which no training run has
CAREFUL = suite.Entry("llada", "llada", suite.QUOTA, (1,), {"order": "low_confidence"})
ENTRIES = (
    CAREFUL,
    suite.Entry("fast_dllm", "fast_dllm", "threshold", (0.9, 0.7, 0.5), {}),
    suite.Entry("dparallel", "dparallel", "entropy_threshold", (0.1, 0.5, 1.0), {}),
)
FILTERED = suite.Entry(
    "learn2pd",
    "learn2pd",
    "accept_thres",
    (0.96, 0.9, 0.8, 0.6),
    {"predict_eot": False},
)


def rows_of(entry, value, source):
    """Of each instance its task, whether it is right, its tokens and its calls."""
    found = []
    for batch in source.batches:
        made = suite.decoded(entry, value, source, batch, seed=0)
        calls = np.asarray(made.stats.num_calls)
        for row, tokens in suite.answers(made.generation):
            right = batch.is_right(row, tokens, True)
            found.append((batch.tasks[row], right, len(tokens) + 1, int(calls[row])))
    return found


def summed(rows, careful, draw):
    """What a group of instances reaches."""
    right, tokens, calls = (
        np.array([row[i] for row in rows], float) for i in (1, 2, 3)
    )
    slow = np.array([row[3] for row in careful], float)
    low, high = quality.wilson(int(right.sum()), len(rows))
    pick = draw.integers(len(rows), size=(1000, len(rows)))
    speed = np.quantile(tokens[pick].sum(1) / calls[pick].sum(1), [0.025, 0.975])
    share = np.quantile(calls[pick].sum(1) / slow[pick].sum(1), [0.025, 0.975])
    return {
        "instances": len(rows),
        "right_percent": [100 * right.mean(), 100 * low, 100 * high],
        "tokens_per_call": [tokens.sum() / calls.sum(), *speed],
        "share_of_calls": [calls.sum() / slow.sum(), *share],
    }


def measure(weights, entry, num, careful):
    """Lines of a table, a value and a kind of task each, and the careful decode."""
    name, model, params, filter_ = weights
    source = suite.trained(model, params, num, SEED)
    if filter_ is not None:
        both = {"model": params, "filter": filter_[1]}
        source = source._replace(
            model=(model, filter_[0]),
            batches=[batch._replace(params=both) for batch in source.batches],
        )
    lines = []
    for value in entry.values:
        rows = rows_of(entry, value, source)
        careful = rows if careful is None else careful
        for kind in dict.fromkeys(kind_of(row[0]) for row in rows):
            mine, slow = (
                [row for row in some if kind_of(row[0]) == kind]
                for some in (rows, careful)
            )
            draw = np.random.Generator(np.random.Philox(key=0))
            line = {"weights": name, "method": entry.name, entry.knob: value}
            line |= {"kind": kind, **summed(mine, slow, draw)}
            by_task = {}
            for row in rows:
                if kind_of(row[0]) == kind:
                    by_task.setdefault(row[0], []).append(row[1])
            line["right_by_task"] = {k: float(np.mean(v)) for k, v in by_task.items()}
            lines.append(line)
            say(line, value)
    return lines, careful


def say(line, value):
    """A line of the table, as text."""
    accuracy, speed, share = (
        "{:7.2f} ({:.2f}-{:.2f})".format(*line[field])
        for field in ("right_percent", "tokens_per_call", "share_of_calls")
    )
    print(
        f"{line['weights']:9} {line['method']:9} {value:5g} {line['kind']:15} "
        f"{accuracy} {speed} {share}",
        flush=True,
    )


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="task_masked")
    made.add_argument("--certainty")
    made.add_argument("--filter")
    made.add_argument("--instances", type=int, default=100, help="of each task")
    made.add_argument("--methods", nargs="*", help="besides llada; default: all")
    made.add_argument("--out", type=pathlib.Path, required=True)
    args = made.parse_args()
    model, params, _ = assembly.load(args.model)
    entries = [
        entry
        for entry in ENTRIES
        if args.methods is None or entry.name in ("llada", *args.methods)
    ]
    jobs = [(("before", model, params, None), entry) for entry in entries]
    if args.certainty is not None:
        _, after, _ = assembly.load(args.certainty)
        jobs += [(("certainty", model, after, None), entry) for entry in entries]
    if args.filter is not None:
        jobs.append((("before", model, params, assembly.load(args.filter)), FILTERED))
    lines, careful = [], None
    for weights, entry in jobs:
        some, careful = measure(weights, entry, args.instances, careful)
        lines += some
    args.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
