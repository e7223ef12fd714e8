"""Handwritten digits told in levels: rows of an image, a question and its answer.

    python -m pdecode.data.captions results/captions

A row is the 64 pixels of a digit, then ROWS or COLUMNS, then nine tokens: its class and
the mean level of each row of pixels, or of each column. Both questions are asked of
every image, and nobody but a reader of the image can answer. Made for drafters that
read an image in part; ids are those of `pdecode.models.digits` with two more.
"""

import sys

import numpy as np

from pdecode.data import digits as images
from pdecode.data import packing
from pdecode.models import digits

ROWS, COLUMNS = digits.VOCAB_SIZE, digits.VOCAB_SIZE + 1
VOCAB_SIZE = digits.VOCAB_SIZE + 2
NUM_FEATURES = digits.SIDE**2
ROW_LEN = NUM_FEATURES + 1 + 1 + digits.SIDE


def row(image: np.ndarray, label: int, question: int) -> np.ndarray:
    """int32 [74] of an image [8, 8] of levels 0 .. 16; ValueError for no question."""
    if question not in (ROWS, COLUMNS):
        raise ValueError(f"question={question} must be {ROWS} (rows) or {COLUMNS}")
    levels = image.mean(1 if question == ROWS else 0)
    told = [digits.FIRST_CLASS + label, *np.round(levels)]
    return np.concatenate([image.reshape(-1), [question], told]).astype(np.int32)


def stream(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint16 [148 N]: both rows of each of N images [N, 8, 8], one after the other."""
    rows = [
        row(image, int(label), question)
        for image, label in zip(pixels, labels, strict=True)
        for question in (ROWS, COLUMNS)
    ]
    return np.concatenate(rows).astype(np.uint16)


def main(out: str) -> None:
    """Writes train.npy, validation.npy and heldout.npy to a new folder."""
    streams = {split: stream(*images.images(split)) for split in images.SPLITS}
    packing.save_splits(out, **streams)


if __name__ == "__main__":
    main(*sys.argv[1:])
