"""Texts to retrieve from, sorted by what stands before each of their tokens.

    store, arrays = datastore.build([tokenizer.encode(text) for text in texts])
    datastore.save("texts.npy", arrays)
    store, arrays = datastore.load("texts.npy")  # memory-mapped

A search for the end of a text is then a search in a sorted list: the places that follow
the longest copy of it stand together.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pdecode import files

BETWEEN = -1  # stands between documents; no text has it, and none is proposed
BEFORE = -2  # stands before the first document
MAX_MATCH = 16  # tokens that places are sorted by, the nearest first


class Store(NamedTuple):
    """Static facts of a datastore, hashable."""

    max_match: int = MAX_MATCH
    name: str = "datastore"


class Texts(NamedTuple):
    """The arrays of a datastore, of numpy or jax: the params of its role."""

    tokens: Any  # int32 [N]  documents, each with BETWEEN behind it
    order: Any  # int32 [M]  places that hold a token, sorted


def build(documents: Sequence[Sequence[int]]) -> tuple[Store, Texts]:
    """A datastore of `documents` (ids each); ValueError if there is no token."""
    parts = [np.append(np.asarray(each, np.int32), BETWEEN) for each in documents]
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    places = np.flatnonzero(tokens >= 0)
    if not len(places):
        raise ValueError(f"{len(documents)} documents hold no token: give some text")
    padded = np.concatenate([np.full(MAX_MATCH, BEFORE, np.int32), tokens])
    # lexsort takes the most significant key last: the nearest token.
    keys = [padded[places + MAX_MATCH - j] for j in range(MAX_MATCH, 0, -1)]
    order = places[np.lexsort(keys)]
    return Store(), Texts(tokens.astype(np.int32), order.astype(np.int32))


def save(path: str | os.PathLike, texts: Texts) -> None:
    """Writes `texts` to one .npy file: plain integers, no code."""
    missing = len(texts.tokens) - len(texts.order)
    order = np.pad(texts.order, (0, missing), constant_values=BETWEEN)
    with files.replacing(path) as file:
        np.save(file, np.stack([texts.tokens, order]), allow_pickle=False)


def load(path: str | os.PathLike) -> tuple[Store, Texts]:
    """(store, arrays) of a file of `save`, memory-mapped; ValueError if it is none."""
    try:
        both = np.load(path, mmap_mode="r", allow_pickle=False)
    except files.UNREADABLE as error:
        raise ValueError(f"{path} is no datastore: {error}") from None
    if not isinstance(both, np.ndarray):
        raise ValueError(
            f"{path} is no datastore: it holds several arrays, as a table of trigrams "
            "does"
        )
    if both.dtype != np.int32 or both.ndim != 2 or both.shape[0] != 2:
        raise ValueError(
            f"{path} is no datastore: it holds {both.dtype} {list(both.shape)}, not "
            "int32 [2, N]"
        )
    tokens, order = both
    # Padding stands behind the places.
    return Store(), Texts(tokens, order[: int((order >= 0).sum())])
