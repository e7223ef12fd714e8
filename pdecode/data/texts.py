"""The two texts of a run: what tokens they hold, which are scored, in what unit.

Checked when they are read, so that a figure is never about another text or vocabulary.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pdecode.data import packing
from pdecode.data.parallelbench import rows as task_rows
from pdecode.models import digits, frames

SPLITS = ("train", "validation")


class Kind(NamedTuple):
    """Data of rows that stand by themselves."""

    row_len: int | None  # None: the run's own
    stream: Callable[[str, str | None], np.ndarray]  # of a split, as in packing.save
    given_ids: tuple[int, ...] = ()  # besides BOS
    is_bytes: bool = False
    is_made: bool = False  # when a run begins, so that no folder holds it


def _digits(split: str, data_dir: str | None) -> np.ndarray:
    from pdecode.data import digits as prepared_digits

    return prepared_digits.stream(split, data_dir)


def _frames(split: str, data_dir: str | None) -> np.ndarray:
    from pdecode.data import frames as prepared_frames

    return prepared_frames.stream(split, data_dir)


def _missing(split: str, data_dir: str | None) -> np.ndarray:
    raise ValueError(
        f"data='rows' reads {split}.npy, which data_dir={data_dir} does not hold: name "
        "a folder that a preparation wrote; the config's docstring has its command "
        "(python -m pdecode.train.trajectories, .train.noise_pairs, .train.judgements, "
        ".data.captions or .evals.parallelbench.answers)"
    )


# By `TrainConfig.data`; None there is one text, cut anywhere.
KINDS = {
    "tasks": Kind(
        task_rows.ROW_LEN,
        lambda split, data_dir: task_rows.stream(split),
        is_bytes=True,
        is_made=True,
    ),
    "digits": Kind(
        digits.RECORD,
        _digits,
        given_ids=tuple(range(digits.FIRST_CLASS, digits.MASK_ID)),
    ),
    "frames": Kind(
        frames.RECORD,
        _frames,
        given_ids=tuple(range(digits.FIRST_CLASS, frames.MASK_ID)),
    ),
    "rows": Kind(None, _missing),
}


class Text(NamedTuple):
    """A token stream and what of it is scored; hashable parts are static arguments."""

    tokens: np.ndarray  # integer [N]
    name: str  # of its split or file, for messages
    unit: str = "byte"  # what figures are divided by: "byte" or "token"
    given_ids: tuple[int, ...] = ()  # tokens that nobody predicts, such as BOS
    row_len: int | None = None  # of rows that stand by themselves; None: cut anywhere

    def is_unit(self, tokens: np.ndarray) -> np.ndarray:
        """bool, as `tokens`: what counts in the denominator of a figure."""
        if self.unit == "byte":
            return tokens < 256
        return ~np.isin(tokens, self.given_ids)

    def describe(self) -> dict[str, Any]:
        """What a record says of the text; its first token is never scored."""
        scored = self._count(lambda part: ~np.isin(part, self.given_ids))
        return {
            "tokens": len(self.tokens),
            "scored_tokens": scored,
            "unit": self.unit,
            "units": self._count(self.is_unit),
            "given_ids": list(self.given_ids),
        }

    def _count(self, is_counted: Callable[[np.ndarray], np.ndarray]) -> int:
        # In pieces, for texts larger than memory.
        starts = range(1, len(self.tokens), packing.PIECE)
        parts = (self.tokens[start : start + packing.PIECE] for start in starts)
        return sum(int(is_counted(part).sum()) for part in parts)


def read(
    data_dir: str | None, data: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation streams, integer [N], of a folder or of the library.

    With `data`, a key of `KINDS`, they are rows of that. A folder that holds train.npy
    must hold validation.npy too: figures of one text on the model of another mean
    nothing. Raises ValueError, naming the file.
    """
    if data_dir is not None:
        folder = pathlib.Path(data_dir)
        there = [name for name in SPLITS if (folder / f"{name}.npy").exists()]
        if len(there) == 1:
            missing = next(name for name in SPLITS if name not in there)
            raise ValueError(
                f"data_dir={data_dir} holds {there[0]}.npy but no {missing}.npy: put "
                "both there (pdecode.data.packing.save), or neither"
            )
    prepare = None if data is None else KINDS[data].stream
    training, validation = (
        packing.load_split(name, data_dir, prepare) for name in SPLITS
    )
    return training, validation


def check(text: Text, *, vocab_size: int, mask_id: int | None, min_len: int) -> None:
    """ValueError, with the place and the value, for what a run could not score.

    `min_len` is the number of tokens that the text must have at least.
    """
    tokens = text.tokens
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"the {text.name} text must be integers in one dimension, but is "
            f"{tokens.dtype} of shape {tokens.shape}"
        )
    if len(tokens) < min_len:
        raise ValueError(
            f"the {text.name} text has {len(tokens)} tokens and takes {min_len} at "
            "least (training: one batch); lower batch_size or row_len, or give more"
        )
    if text.row_len is not None and len(tokens) % text.row_len:
        raise ValueError(
            f"the {text.name} text has {len(tokens)} tokens, no whole rows of "
            f"{text.row_len}"
        )
    for is_bad, why in (
        (lambda part: (part < 0) | (part >= vocab_size), f"no id of {vocab_size=}"),
        (lambda part: part == mask_id, "the mask id, which no text may hold"),
    ):
        found = _first(tokens, is_bad)
        if found is not None:
            raise ValueError(
                f"the {text.name} text has token {int(tokens[found])} at place "
                f"{found}: {why.replace('vocab_size', 'model.vocab_size')}"
            )
    if not text.describe()["units"]:
        raise ValueError(
            f"the {text.name} text has no {text.unit} to score behind its first token"
        )


def _first(tokens: np.ndarray, is_bad) -> int | None:
    """Where the first bad token stands; in pieces, for texts larger than memory."""
    for start in range(0, len(tokens), packing.PIECE):
        bad = np.flatnonzero(is_bad(tokens[start : start + packing.PIECE]))
        if bad.size:
            return start + int(bad[0])
    return None
