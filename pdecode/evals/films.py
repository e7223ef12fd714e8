"""What drawn clips are worth: is it the digit still, does it go where it was told to.

The first frame and the actions are given, so each further frame has one right answer:
the first, moved. Three figures of every frame: the classifier's word (`evals.images`)
once the moves are undone; whether, of all actions, the one asked for explains best what
became of the frame before it; and the mean error in grey levels, which adds up along a
clip where a decoder drifts. Figures of the right answers come with them.
"""

import os
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib.image
import numpy as np

from pdecode.evals import images, quality
from pdecode.models import digits, frames
from pdecode.models.frames import Clips


class Worth(NamedTuple):
    """Figures of N clips, by frame; intervals hold 95 of 100 repetitions."""

    accuracy: list[float]  # of frames 0 .. T - 1
    accuracy_interval: list[tuple[float, float]]
    motion: list[float]  # of frames 1 .. T - 1
    motion_interval: list[tuple[float, float]]
    error: list[float]  # of frames 0 .. T - 1, in levels of 0 .. 16


def worth(by: images.Judge, drawn: np.ndarray, asked: Clips) -> Worth:
    """Figures of drawn frames uint8 [N, T, 8, 8] of clips `asked`."""
    still = undone(drawn, asked.actions)
    right = np.stack(
        [
            images.classified(by, still[:, frame]) == asked.classes
            for frame in range(still.shape[1])
        ],
        1,
    )
    moves = moved_as_asked(drawn, asked.actions)
    error = np.abs(drawn.astype(np.float64) - asked.frames).mean((0, 2, 3))
    return Worth(
        right.mean(0).tolist(),
        [quality.wilson(int(each.sum()), len(each)) for each in right.T],
        moves.mean(0).tolist(),
        [quality.wilson(int(each.sum()), len(each)) for each in moves.T],
        error.tolist(),
    )


def undone(drawn: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Frames [N, T, 8, 8] with the moves so far taken back."""
    found = drawn.copy()
    shifts = np.cumsum(np.asarray(frames.SHIFTS)[actions], 1)  # [N, T - 1, 2]
    for clip, ways in zip(found, shifts):
        for frame, (down, right) in zip(clip[1:], ways):
            frame[:] = np.roll(frame, (-down, -right), (0, 1))
    return found


def moved_as_asked(drawn: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """bool [N, T - 1]: the frame before, moved as asked, is nearer than moved else.

    Where two actions would make the same picture neither counts.
    """
    before, after = drawn[:, :-1].astype(np.float64), drawn[:, 1:]
    far = np.stack(
        [
            np.square(frames.moved(before, action) - after).sum((-1, -2))
            for action in range(len(frames.ACTIONS))
        ],
        -1,
    )
    asked = np.take_along_axis(far, actions[..., None], -1)
    others = np.where(np.arange(far.shape[-1]) == actions[..., None], np.inf, far)
    return asked[..., 0] < others.min(-1)


def numbers(clips: Clips, patch: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    """What a denoiser takes: frames float32 [N, T, P, D], and what asks [N, T, 2]."""
    values = frames.values(clips.frames.astype(np.float32))
    heads = np.array(
        [frames.head(int(c), a) for c, a in zip(clips.classes, clips.actions)]
    )
    given = np.stack([np.repeat(heads[:, :1], heads.shape[1], 1), heads], -1)
    return jnp.asarray(frames.patches(values, patch)), jnp.asarray(given, jnp.int32)


def pictures(film: np.ndarray, patch: int) -> np.ndarray:
    """uint8 [N, T, 8, 8] of a denoiser's film [N, T, P, D]."""
    return frames.levels(frames.unpatched(np.asarray(film), patch))


def strip(
    path: str | os.PathLike, rows: list[np.ndarray], *, scale: int = 6, gap: int = 2
) -> None:
    """Writes clips uint8 [T, 8, 8] as PNG: a line each, frame beside frame."""
    side = frames.SIDE + gap
    page = np.zeros((len(rows) * side + gap, max(map(len, rows)) * side + gap))
    page[:] = 0.25 * digits.NUM_LEVELS  # grey between frames
    for line, clip in enumerate(rows):
        for number, frame in enumerate(clip):
            top, left = line * side + gap, number * side + gap
            page[top : top + frames.SIDE, left : left + frames.SIDE] = frame
    page = page.repeat(scale, 0).repeat(scale, 1)
    top = digits.NUM_LEVELS - 1
    matplotlib.image.imsave(path, page, cmap="gray_r", vmin=0, vmax=top, format="png")
