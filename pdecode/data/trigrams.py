"""Which tokens follow two others in a corpus, and how often: a table to draft from.

table, arrays = trigrams.build([tokenizer.encode(text) for text in texts])
"""

import collections
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pdecode import files

MAX_ID = 2**16 - 1  # two ids make one key of 32 bits


class Trigrams(NamedTuple):
    """Static facts of a table, hashable."""

    num_kept: int  # K
    name: str = "trigrams"


class Followers(NamedTuple):
    """The arrays of a table, of numpy or jax: the params of its role."""

    keys: Any  # uint32 [S]  first id * 2**16 + second id, rising
    ids: Any  # int32 [S, K]  the most frequent first; -1: none
    weights: Any  # float32 [S, K]  shares of all that followed


def build(
    documents: Sequence[Sequence[int]], num_kept: int = 12
) -> tuple[Trigrams, Followers]:
    """The `num_kept` most frequent followers of every pair; of equals the lowest id.

    ValueError for ids above 65,535, and for documents without three tokens.
    """
    if num_kept < 1:
        raise ValueError(f"{num_kept=} must be at least 1")
    counts: dict[int, collections.Counter] = {}
    for document in documents:
        if len(document) and not 0 <= min(document) <= max(document) <= MAX_ID:
            raise ValueError(f"ids must lie in [0, {MAX_ID}]: two make one key")
        for a, b, c in zip(document, document[1:], document[2:]):
            counts.setdefault((a << 16) + b, collections.Counter())[c] += 1
    if not counts:
        raise ValueError(f"{len(documents)} documents hold no three tokens in a row")
    keys = sorted(counts)
    ids = np.full((len(keys), num_kept), -1, np.int32)
    weights = np.zeros((len(keys), num_kept), np.float32)
    for row, key in enumerate(keys):
        total = sum(counts[key].values())
        best = sorted(counts[key].items(), key=lambda pair: (-pair[1], pair[0]))
        for place, (token, count) in enumerate(best[:num_kept]):
            ids[row, place], weights[row, place] = token, count / total
    return Trigrams(num_kept), Followers(np.array(keys, np.uint32), ids, weights)


def save(path: str | os.PathLike, found: Followers) -> None:
    """Writes a table to one .npz file: plain numbers, no code."""
    with files.replacing(path) as file:
        np.savez(file, **found._asdict())


def load(path: str | os.PathLike) -> tuple[Trigrams, Followers]:
    """(table, arrays) of a file of `save`; ValueError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = Followers(*(stored[name] for name in Followers._fields))
    except files.UNREADABLE as error:
        raise ValueError(f"{path} is no table of trigrams: {error}") from None
    kinds = [each.dtype for each in found]
    if kinds != [np.uint32, np.int32, np.float32] or found.ids.ndim != 2:
        raise ValueError(f"{path} is no table of trigrams: it holds {kinds}")
    if (
        not found.ids.shape
        == found.weights.shape
        == (len(found.keys), found.ids.shape[1])
    ):
        raise ValueError(f"{path} is no table of trigrams: its rows do not agree")
    return Trigrams(found.ids.shape[1]), found
