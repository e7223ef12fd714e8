"""Clips of the handwritten digits, each moved by a rule (`pdecode.models.frames`).

Made from `pdecode.data.digits` when they are asked for; a digit's clips are in its
split, so no digit of the validation or held-out clips is seen in training. Each digit
has `CLIPS` of them. Actions are drawn from a generator that the pixels and the clip's
number seed: the first of the five at random, each further one the same as before in
three cases of four, and otherwise drawn anew. Actions repeat, as a player's do.
"""

import hashlib

import numpy as np

from pdecode.data import digits
from pdecode.models import frames

CLIPS = 4  # of every digit
_STAYS = 0.75


def actions_of(image: np.ndarray, number: int) -> np.ndarray:
    """int32 [7] of clip `number` of an image of uint8."""
    digest = hashlib.sha256(np.asarray(image, np.uint8).tobytes() + bytes([number]))
    draw = np.random.default_rng(int.from_bytes(digest.digest()[:8], "big"))
    found = [int(draw.integers(len(frames.ACTIONS)))]
    while len(found) < frames.NUM_FRAMES - 1:
        stays = draw.random() < _STAYS
        found.append(found[-1] if stays else int(draw.integers(len(frames.ACTIONS))))
    return np.array(found, np.int32)


def records(images: np.ndarray, labels: np.ndarray, count: int = CLIPS) -> np.ndarray:
    """int32 [count N, 520]: `count` clips of each image uint8 [N, 8, 8]."""
    rows = [
        frames.record(image, int(label), actions_of(image, number))
        for image, label in zip(images, labels)
        for number in range(count)
    ]
    return np.stack(rows)


def clips(split: str, data_dir: str | None = None) -> frames.Clips:
    """The clips of "train", "validation" or "heldout"; needs scikit-learn."""
    return frames.parsed(records(*digits.images(split, data_dir)))


def stream(split: str, data_dir: str | None = None) -> np.ndarray:
    """uint16 [520 N]: the records of a split, one after the other."""
    return records(*digits.images(split, data_dir)).reshape(-1).astype(np.uint16)
