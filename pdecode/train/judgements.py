"""Answers to tasks with a label for every token, for `objective="judge"` to learn from.

    python -m pdecode.train.judgements results/task_judgements

The tasks are those of `pdecode.data.parallelbench` whose right answers can be listed,
so that a checker says of each token whether any right answer goes on like this. Half of
the answers are right ones, drawn from all there are; in the others one place is
changed. What comes after a wrong token is not labelled, nor is the prompt.
"""

import argparse
import sys

import numpy as np

from pdecode.data import packing
from pdecode.data.parallelbench import lines, tasks
from pdecode.data.parallelbench.rows import ROW_LEN
from pdecode.models.bytes import EOS_ID, tokenizer
from pdecode.train.objectives.judge import RIGHT, UNTOLD, WRONG

NAMES = tuple(lines.OPERATIONS)
SEEDS = {"train": 2**61, "validation": 2**61 + 1}


def labels_of(text: str, right: list[str]) -> list[int]:
    """A label for each character of an answer, and for its end."""
    found = []
    for place in range(len(text) + 1):
        goes_on = [each for each in right if each.startswith(text[:place])]
        now = text[place : place + 1]
        is_right = any(each[place : place + 1] == now for each in goes_on)
        found.append(RIGHT if is_right else WRONG)
        if not is_right:
            break
    return found + [UNTOLD] * (len(text) + 1 - len(found))


def changed(text: str, draw: np.random.Generator) -> str:
    """The answer with one letter replaced, left out or put in."""
    place, kind = int(draw.integers(len(text))), int(draw.integers(3))
    letter = draw.choice(list(tasks.LETTERS + text))
    return text[:place] + ("" if kind == 0 else letter) + text[place + (kind < 2) :]


def rows(split: str, num: int) -> np.ndarray:
    """uint16 [N, 2 * ROW_LEN], `num` instances of each task, in a random order."""
    draw = np.random.Generator(np.random.Philox(key=[SEEDS[split], 0]))
    part = "train" if split == "train" else "heldout"
    found = []
    for task in NAMES:
        for made in tasks.generate(task, SEEDS[split], num, split=part):
            assert isinstance(made.asked, lines.Line), "of the ten operations"
            every = ["".join(out) for out in lines.OPERATIONS[task].right(made.asked)]
            text = str(draw.choice(every))
            text = changed(text, draw) if draw.random() < 0.5 else text
            row = np.full((2, ROW_LEN), [[EOS_ID], [UNTOLD]], np.uint16)
            prompt = tokenizer.encode(made.prompt)
            ids = prompt + [ord(letter) for letter in text]
            row[0, : len(ids)] = ids
            row[1, len(prompt) : len(ids) + 1] = labels_of(text, every)
            found.append(row.ravel())
    return np.stack(found)[draw.permutation(len(found))]


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("folder", help="to write, with train.npy and validation.npy")
    made.add_argument("--instances", type=int, default=2000, help="of each task")
    args = made.parse_args(arguments)
    counts = {"train": args.instances, "validation": 100}
    packing.save_splits(
        args.folder,
        **{split: rows(split, num).ravel() for split, num in counts.items()},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
