"""Documents to one token stream, the stream to rows, rows to batches by step number.

A batch is a function of (seed, step), so a training run that knows its step resumes
with exactly the batches it would have seen.
"""

import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from pdecode import files
from pdecode.models.bytes import BOS_ID, EOS_ID

PIECE = 1 << 24  # tokens looked at in one go, where a text may exceed memory


def stream(documents: Iterable[bytes]) -> np.ndarray:
    """uint16 [N]: BOS, the bytes and EOS of each document, one after the other."""
    parts = [
        np.concatenate([[BOS_ID], np.frombuffer(text, np.uint8), [EOS_ID]])
        for text in documents
    ]
    return np.concatenate(parts).astype(np.uint16) if parts else np.zeros(0, np.uint16)


def fingerprint(tokens: np.ndarray) -> str:
    """The data hash: SHA-256, in hex, of a token stream as little-endian uint16.

    Of uint32, and marked as such, where an id needs it: no two texts share a hash.
    """
    is_wide = len(tokens) > 0 and int(tokens.max()) >= 2**16
    digest = hashlib.sha256(b"uint32" if is_wide else b"")
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        digest.update(piece.astype("<u4" if is_wide else "<u2").tobytes())
    return digest.hexdigest()


def num_bytes(tokens: np.ndarray) -> int:
    """How many of the tokens are bytes of text."""
    return int((tokens < 256).sum())


class Sampler(NamedTuple):
    """Rows of a token stream in a new order every epoch, each token equally often.

    Epoch e lays the stream in a circle and cuts it into rows at its own offset, drawn
    from (seed, e), so that row edges move and no end is seen less than the middle.
    What fills no row, and rows that fill no batch, are left out of that epoch. A text
    that is whole rows is always cut between them.
    """

    tokens: np.ndarray  # integer [N]
    row_len: int
    batch_size: int
    seed: int
    is_whole: bool = False

    @property
    def batches_per_epoch(self) -> int:
        return len(self.tokens) // self.row_len // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """int32 [batch_size, row_len], the batch of a step counted from zero."""
        epoch, turn = divmod(step, self.batches_per_epoch)
        offset, order = _order(self.seed, epoch, len(self.tokens), self.row_len)
        chosen = order[turn * self.batch_size : (turn + 1) * self.batch_size]
        starts = (0 if self.is_whole else offset) + chosen * self.row_len
        index = starts[:, None] + np.arange(self.row_len)[None, :]
        return self.tokens[index % len(self.tokens)].astype(np.int32)


# Drawn once an epoch: at a billion tokens it takes a quarter of a second.
@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int, row_len: int) -> tuple[int, np.ndarray]:
    """Where an epoch's first row starts, and its rows in the order of their turn."""
    draw = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return int(draw.integers(length)), draw.permutation(length // row_len)


def sampler(
    tokens: np.ndarray,
    *,
    row_len: int,
    batch_size: int,
    seed: int,
    is_whole: bool = False,
) -> Sampler:
    """A `Sampler`; ValueError if the stream is too short for one batch."""
    made = Sampler(tokens, row_len, batch_size, seed, is_whole)
    if made.batches_per_epoch < 1:
        need = batch_size * row_len
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


def save_splits(folder: str | os.PathLike, **streams: np.ndarray) -> None:
    """Writes streams as FOLDER/NAME.npy, all of them or none.

    ValueError for a folder that is there already.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists: remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as root:
        made = pathlib.Path(root) / folder.name
        for name, tokens in streams.items():
            save(made / f"{name}.npy", tokens)
        made.rename(folder)


def load_split(
    split: str,
    data_dir: str | None = None,
    prepare: Callable[[str, str | None], np.ndarray] | None = None,
) -> np.ndarray:
    """The token stream of a split: of the standard library corpus, or of `prepare`.

    A folder that holds `{split}.npy` (as `save` wrote it) is read as it is; any other
    is where TensorFlow Datasets keeps, or now prepares, the data. Returns uint16 [N];
    raises ValueError, naming the file, for one that is no array.
    """
    if data_dir is not None:
        ready = pathlib.Path(data_dir) / f"{split}.npy"
        if ready.exists():
            try:
                return np.load(ready, mmap_mode="r")
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(f"{ready} is no .npy array: {error}") from None
    if prepare is not None:
        return prepare(split, data_dir)
    from pdecode.data import stdlib_code

    return stream(stdlib_code.documents(split, data_dir))


def fill_after_eos(
    rows: np.ndarray, fraction: float, seed: int, step: int, eos_id: int = EOS_ID
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
    ends = (rows == eos_id) & (index >= place[:, None])
    # ends 0 0 1 0 1 -> from the first on 0 0 1 1 1
    ended = np.logical_or.accumulate(ends, axis=1)
    return np.where(ended & chosen[:, None], np.int32(eos_id), rows)
