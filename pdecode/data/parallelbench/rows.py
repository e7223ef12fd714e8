"""Rows to train on: one instance each, and EOS behind its answer.

A mixture of all tasks, the puzzles twice as often, because they have more to decide.
"""

import numpy as np

from pdecode.data.parallelbench import tasks
from pdecode.models.bytes import EOS_ID, tokenizer

ROW_LEN = 36  # BOS, "U", 16 cells, "=", 16 cells, EOS
END_ID = ord(tasks.END)  # of the prompt
SEEDS = {"train": 0, "validation": 1}
NUM_ROWS = {"train": 2**18, "validation": 2**11}
_SHARES = {name: 1 for name in tasks.NAMES} | dict.fromkeys(
    ("latin_square", "sudoku", "addition"), 2
)


def stream(split: str, num_rows: int | None = None) -> np.ndarray:
    """uint16 [N * ROW_LEN] of "train", or of "validation", which is held out.

    Raises ValueError for an unknown split.
    """
    if split not in SEEDS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SEEDS)}")
    num_rows = NUM_ROWS[split] if num_rows is None else num_rows
    part = "train" if split == "train" else "heldout"
    found = []
    for name, share in _SHARES.items():
        count = -(-num_rows * share // sum(_SHARES.values()))
        found += tasks.generate(name, SEEDS[split], count, split=part)
    # Tasks in turn, lengths too: any run of rows is a mixture.
    order = np.random.Generator(np.random.Philox(key=SEEDS[split])).permutation(
        len(found)
    )[:num_rows]
    made = np.full((num_rows, ROW_LEN), EOS_ID, np.uint16)
    for row, index in zip(made, order, strict=True):
        ids = tokenizer.encode(found[index].prompt + found[index].answer)
        row[: len(ids)] = ids
    return made.ravel()
