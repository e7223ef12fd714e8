"""Short films of a handwritten digit that is moved, as tokens and as numbers.

A clip is eight frames of 8 x 8 pixels. The first is the digit; each of the others is
the one before it, moved by its action: a pixel to a side, what leaves at one edge comes
back at the other, or not at all. A record is a head of eight tokens, the class and the
seven actions, and then the frames, a token a pixel, row by row. So the head is as long
as a row of pixels, and blocks of a row or of a frame begin where rows begin.

Ids 0 .. 16 are grey levels, 17 .. 26 the classes 0 .. 9 (as in `models.digits`), 27 ..
31 the actions; the mask comes last.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pdecode.models import digits

SIDE = digits.SIDE
FRAME = SIDE * SIDE  # tokens
NUM_FRAMES = 8
ACTIONS = ".>v<^"  # stay, right, down, left, up
SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # rows and columns
FIRST_ACTION = digits.FIRST_CLASS + digits.NUM_CLASSES
MASK_ID = FIRST_ACTION + len(ACTIONS)
VOCAB_SIZE = MASK_ID + 1
HEAD = NUM_FRAMES  # a class, and an action for each frame behind the first
RECORD = HEAD + NUM_FRAMES * FRAME


class Clips(NamedTuple):
    """Records taken apart."""

    frames: np.ndarray  # uint8 [N, T, 8, 8]
    classes: np.ndarray  # int32 [N]
    actions: np.ndarray  # int32 [N, T - 1]  index into ACTIONS


def moved(image: np.ndarray, action: int) -> np.ndarray:
    """An image [..., 8, 8] after one action."""
    return np.roll(image, SHIFTS[action], (-2, -1))


def clip(image: np.ndarray, actions: Iterable[int]) -> np.ndarray:
    """Frames uint8 [1 + len(actions), 8, 8] that begin with `image`."""
    found = [np.asarray(image, np.uint8)]
    for action in actions:
        found.append(moved(found[-1], action))
    return np.stack(found)


def head(label: int, actions: Iterable[int]) -> list[int]:
    """The tokens in front of the frames."""
    return [digits.FIRST_CLASS + label, *(FIRST_ACTION + each for each in actions)]


def record(image: np.ndarray, label: int, actions: Iterable[int]) -> np.ndarray:
    """int32 [520] of an image [8, 8] of levels 0 .. 16, its class and seven actions."""
    actions = list(actions)
    pixels = clip(image, actions).reshape(-1)
    return np.concatenate([head(label, actions), pixels]).astype(np.int32)


def parsed(tokens: np.ndarray) -> Clips:
    """Records int [N, 520] taken apart; what is no grey level is empty."""
    tokens = np.asarray(tokens).reshape(-1, RECORD)
    pixels = digits.pictures(tokens[:, HEAD:].reshape(-1, FRAME))
    return Clips(
        pixels.reshape(-1, NUM_FRAMES, SIDE, SIDE),
        (tokens[:, 0] - digits.FIRST_CLASS).astype(np.int32),
        (tokens[:, 1:HEAD] - FIRST_ACTION).astype(np.int32),
    )


class FrameTokenizer(NamedTuple):
    """The tokenizer of the clips; its "text" of a prompt is a class and its actions,
    of pixels a drawing, two characters a pixel."""

    vocab_size: int = VOCAB_SIZE
    mask_id: int = MASK_ID
    row_length: int = SIDE

    def encode(self, text: str) -> list[int]:
        """The head that `text` names, as "7 >>>.vv^". ValueError otherwise."""
        label, _, way = text.strip().partition(" ")
        actions = [ACTIONS.find(each) for each in way]
        if len(actions) != HEAD - 1 or min(actions) < 0:
            raise ValueError(
                f"{text!r} is no class and {HEAD - 1} of the actions {ACTIONS}: give "
                "for example '7 >>>.vv^'"
            )
        return digits.tokenizer.encode(label) + head(0, actions)[1:]

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
        """Two characters, darker for more ink; an action is its sign, the mask ??."""
        if FIRST_ACTION <= token < MASK_ID:
            return f"{ACTIONS[token - FIRST_ACTION]:>2}"
        return digits.tokenizer.pixel(token)


def values(levels, num_levels: int = digits.NUM_LEVELS):
    """Grey levels 0 .. num_levels - 1 as numbers from -1 to 1."""
    return levels * (2.0 / (num_levels - 1)) - 1.0


def levels(numbers: np.ndarray, num_levels: int = digits.NUM_LEVELS) -> np.ndarray:
    """Numbers as the nearest grey levels, uint8."""
    near = np.rint((np.asarray(numbers, np.float64) + 1) * (num_levels - 1) / 2)
    return np.clip(near, 0, num_levels - 1).astype(np.uint8)


def patches(images, side: int):
    """Squares of `side` pixels, [..., N, side * side], of images [..., S, S]."""
    *outer, height, width = images.shape
    cut = images.reshape(*outer, height // side, side, width // side, side)
    return cut.swapaxes(-3, -2).reshape(*outer, -1, side * side)


def unpatched(squares, side: int):
    """Images [..., S, S] of their squares [..., N, side * side]."""
    *outer, count, _ = squares.shape
    across = round(count**0.5)
    cut = squares.reshape(*outer, across, across, side, side)
    return cut.swapaxes(-3, -2).reshape(*outer, across * side, across * side)


tokenizer = FrameTokenizer()
