"""A text cut into rows for figures, and the count of what they score.

All bits of the scored tokens (bytes and EOS; BOS is given) over the number of bytes,
the same count as the n-gram baseline's; or over the number of tokens, where tokens are
no bytes.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pdecode.data import packing
from pdecode.data.texts import Text

BATCH = 16


class Rows(NamedTuple):
    """Rows of a text, what of them is scored, and how many units that is."""

    tokens: np.ndarray  # int32 [N, L]
    scored: np.ndarray  # bool [N, L]
    num_units: int


def rows(
    text: Text,
    row_len: int,
    stride: int,
    max_rows: int | None = None,
    is_answer: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Rows:
    """Rows that score every token once; `max_rows` of them, spread evenly.

    With `is_answer` only the tokens of each row that it names.
    """
    if text.row_len is None:
        tokens, scored = packing.windows(text.tokens, row_len, stride)
    else:
        tokens = text.tokens.reshape(-1, text.row_len).astype(np.int32)
        scored = ~np.isin(tokens, text.given_ids)
    if is_answer is not None:
        scored &= is_answer(tokens)
    if max_rows is not None and max_rows < len(tokens):
        spread = np.linspace(0, len(tokens) - 1, max_rows).astype(int)
        tokens, scored = tokens[spread], scored[spread]
    counted = scored & text.is_unit(tokens)
    return Rows(tokens, scored, max(int(counted.sum()), 1))


def parts(found: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one shape; rows added at the end score nothing."""
    tokens, scored, _ = found
    extra = -len(tokens) % BATCH
    tokens = np.concatenate([tokens, np.repeat(tokens[:1], extra, axis=0)])
    scored = np.concatenate([scored, np.zeros((extra, tokens.shape[1]), bool)])
    for start in range(0, len(tokens), BATCH):
        yield tokens[start : start + BATCH], scored[start : start + BATCH]


def summed(found: Rows, of_part: Callable, put: Callable = np.asarray) -> np.ndarray:
    """The sum, float64, of what `of_part(tokens, scored)` counts of each of `parts`."""
    counts = [np.asarray(of_part(*map(put, part)), np.float64) for part in parts(found)]
    return np.sum(counts, axis=0)


def bits(nats):
    """Nats as bits."""
    return nats / math.log(2)
