"""Handwritten digits as tokens: a class, then 64 pixels of 17 grey levels, row by row.

Ids 0 .. 16 are grey levels, 17 .. 26 the classes 0 .. 9; the mask comes last, and also
stands for a class that is not told. Where text is wanted a picture is drawn.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SIDE = 8  # pixels of a row, and rows
NUM_LEVELS = 17
NUM_CLASSES = 10
FIRST_CLASS = NUM_LEVELS
MASK_ID = FIRST_CLASS + NUM_CLASSES
VOCAB_SIZE = MASK_ID + 1
RECORD = 1 + SIDE * SIDE  # tokens of an image with its class

_INK = " .:-=+*#%@"


def record(image: np.ndarray, label: int) -> np.ndarray:
    """int32 [65] of an image [8, 8] of levels 0 .. 16 and its class."""
    return np.concatenate([[FIRST_CLASS + label], image.reshape(-1)]).astype(np.int32)


class DigitTokenizer(NamedTuple):
    """The tokenizer of the digits; its "text" of a prompt is a class, of pixels a
    drawing, two characters a pixel."""

    vocab_size: int = VOCAB_SIZE
    mask_id: int = MASK_ID
    row_length: int = SIDE

    def encode(self, text: str) -> list[int]:
        """The class that `text` names, as "7"; "?" is none. ValueError otherwise."""
        text = text.strip()
        if text == "?":
            return [self.mask_id]
        if not (text.isdecimal() and int(text) < NUM_CLASSES):
            raise ValueError(
                f"{text!r} is no class of digits: give 0 to {NUM_CLASSES - 1}, or ?"
            )
        return [FIRST_CLASS + int(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """A drawing, a line for each row of pixels.

        Raises ValueError for a negative id, which is no token.
        """
        found = [int(i) for i in np.asarray(list(ids), dtype=np.int64).ravel()]
        if found and min(found) < 0:
            raise ValueError(f"token ids must be >= 0, but got {min(found)}")
        drawn = [self.pixel(token) for token in found]
        lines = [drawn[i : i + SIDE] for i in range(0, len(drawn), SIDE)]
        return "\n".join("".join(line) for line in lines)

    def pixel(self, token: int) -> str:
        """Two characters, darker for more ink; a class is its number, the mask ??."""
        if token >= MASK_ID:
            return "??"
        if token >= FIRST_CLASS:
            return f"{token - FIRST_CLASS:2}"
        return 2 * _INK[token * (len(_INK) - 1) // (NUM_LEVELS - 1)]


def pictures(rows: Iterable[Iterable[int]]) -> np.ndarray:
    """uint8 [N, 8, 8] of rows of 64 ids; what is no grey level is empty."""
    levels = np.array(list(rows), np.int64).reshape(-1, SIDE, SIDE)
    return np.where(levels < NUM_LEVELS, levels, 0).astype(np.uint8)


tokenizer = DigitTokenizer()
