"""Documents to one token stream, the stream to rows, rows to batches by step number.

A batch is a function of (seed, step), so a training run that knows its step resumes
with exactly the batches it would have seen.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pdecode import files
from pdecode.models.bytes import BOS_ID, EOS_ID


def stream(documents: Iterable[bytes]) -> np.ndarray:
    """uint16 [N]: BOS, the bytes and EOS of each document, one after the other."""
    parts = [
        np.concatenate([[BOS_ID], np.frombuffer(text, np.uint8), [EOS_ID]])
        for text in documents
    ]
    return np.concatenate(parts).astype(np.uint16) if parts else np.zeros(0, np.uint16)


def fingerprint(tokens: np.ndarray) -> str:
    """The data hash: SHA-256, in hex, of a token stream as little-endian uint16."""
    return hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()


def num_bytes(tokens: np.ndarray) -> int:
    """How many of the tokens are bytes of text."""
    return int((tokens < 256).sum())


class Sampler(NamedTuple):
    """Rows of a token stream in a new order every epoch, each token once an epoch.

    Epoch e cuts the stream into rows at its own offset, drawn from (seed, e), so that
    row edges move; the tail that fills no batch is left out of that epoch.
    """

    tokens: np.ndarray  # uint16 [N]
    row_len: int
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        # One row less, so that every offset leaves the same number of whole rows.
        return (len(self.tokens) // self.row_len - 1) // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """int32 [batch_size, row_len], the batch of a step counted from zero."""
        epoch, turn = divmod(step, self.batches_per_epoch)
        draw = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        offset = int(draw.integers(self.row_len))
        num_rows = len(self.tokens) // self.row_len - 1
        order = draw.permutation(num_rows)
        chosen = order[turn * self.batch_size : (turn + 1) * self.batch_size]
        starts = offset + chosen * self.row_len
        index = starts[:, None] + np.arange(self.row_len)[None, :]
        return self.tokens[index].astype(np.int32)


def sampler(tokens: np.ndarray, *, row_len: int, batch_size: int, seed: int) -> Sampler:
    """A `Sampler`; ValueError if the stream is too short for one batch."""
    made = Sampler(tokens, row_len, batch_size, seed)
    if made.batches_per_epoch < 1:
        need = (batch_size + 1) * row_len
        raise ValueError(
            f"{len(tokens)} tokens make no batch of {batch_size} rows of {row_len}; "
            f"it takes {need}: lower batch_size or row_len"
        )
    return made


def windows(
    tokens: np.ndarray, row_len: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping rows that score every token but the first exactly once.

    Returns int32 [N, row_len] (the last row padded by repeating its last token) and
    bool [N, row_len], true where the token is scored: the last `stride` of a row, and
    all but the first token of the first row.
    """
    if not 0 < stride <= row_len - 1:
        raise ValueError(f"stride={stride} must be in [1, row_len - 1 = {row_len - 1}]")
    length = len(tokens)
    starts = np.arange(0, max(length - row_len, 0) + stride, stride)
    index = starts[:, None] + np.arange(row_len)[None, :]
    scored = index < length
    scored[1:, : row_len - stride] = False
    scored[:1, 0] = False
    rows = tokens[np.minimum(index, length - 1)].astype(np.int32)
    keep = scored.any(axis=1)
    return rows[keep], scored[keep]


def save(path: str | os.PathLike, tokens: np.ndarray) -> None:
    """Writes a stream as .npy, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        np.save(file, tokens)


def load_split(split: str, data_dir: str | None = None) -> np.ndarray:
    """The token stream of a split of the standard library corpus, uint16 [N].

    A folder that holds `{split}.npy` (as `save` wrote it) is read as it is; any other
    is where TensorFlow Datasets keeps, or now prepares, the corpus.
    """
    if data_dir is not None:
        ready = pathlib.Path(data_dir) / f"{split}.npy"
        if ready.exists():
            return np.load(ready)
    from pdecode.data import stdlib_code

    return stream(stdlib_code.documents(split, data_dir))


def fill_after_eos(
    rows: np.ndarray, fraction: float, seed: int, step: int
) -> np.ndarray:
    """Rows [B, L] in which about `fraction` of those that can end with EOS do.

    Such a row keeps its text up to the first document end at or after a random place,
    and is EOS from there on: so a canvas model learns to end, and that what follows an
    end is only filling. Rows without a document end after that place stay.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, 2**32 + step]))
    batch, length = rows.shape
    chosen = draw.random(batch) < fraction
    place = draw.integers(length, size=batch)
    index = np.arange(length)[None, :]
    ends = (rows == EOS_ID) & (index >= place[:, None])
    # ends 0 0 1 0 1 -> from the first on 0 0 1 1 1
    ended = np.logical_or.accumulate(ends, axis=1)
    return np.where(ended & chosen[:, None], np.int32(EOS_ID), rows)
