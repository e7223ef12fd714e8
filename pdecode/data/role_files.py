"""What a method takes besides models, from files of plain numbers.

corpus, other  .npy of `data.datastore`
table          .npz of `data.trigrams`
codes          .npy: the nearest others int32 [V, K], or shares in groups float [G, V]
background     .npy: how frequent each token is, float [V]
judge          .npz of weight [E] and bias []: a linear one on the target's state
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import files
from pdecode.contracts import Background, Codes, Judge, Params
from pdecode.data import datastore, trigrams

__all__ = ["READERS", "read"]


def read(kind: str, path: str | os.PathLike) -> tuple[Any, Params]:
    """(record, params) of a file for a role of `kind`, a key of READERS.

    Raises ValueError for a file that is none of that kind; no file runs code.
    """
    record, params = READERS[kind](path)
    return record, jax.tree.map(jnp.asarray, params)


def _array(path: str | os.PathLike, num_axes: int) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except files.UNREADABLE as error:
        raise ValueError(f"{path} is no .npy file: {error}") from None
    if not isinstance(found, np.ndarray) or found.ndim != num_axes or not found.size:
        what = list(found.shape) if isinstance(found, np.ndarray) else "several arrays"
        raise ValueError(f"{path} holds {what}, not numbers of {num_axes} axes")
    if found.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {found.dtype}, no numbers")
    return found


def _codes(path: str | os.PathLike) -> tuple[Codes, np.ndarray]:
    found = _array(path, 2)
    if np.issubdtype(found.dtype, np.integer):
        if not 0 <= found.min() <= found.max() < len(found):
            raise ValueError(f"{path}: a code's nearest are ids in [0, {len(found)})")
        return Codes(len(found)), found.astype(np.int32)
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError(f"{path}: shares in groups must be numbers from 0")
    return Codes(found.shape[1]), found.astype(np.float32)


def _background(path: str | os.PathLike) -> tuple[Background, np.ndarray]:
    found = _array(path, 1).astype(np.float32)
    if not (np.isfinite(found).all() and (found >= 0).all() and found.sum() > 0):
        raise ValueError(
            f"{path}: frequencies must be numbers from 0, not all of them 0"
        )
    return Background(len(found)), found / found.sum()


def _linear(params: Params, hidden: Array) -> Array:
    """Logits [N] of states [N, E]."""
    return hidden @ params["weight"] + params["bias"]


def _judge(path: str | os.PathLike) -> tuple[Judge, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as found:
            weight, bias = found["weight"], found["bias"]
    except files.UNREADABLE as error:
        raise ValueError(f"{path} is no .npz of weight and bias: {error}") from None
    if weight.ndim != 1 or bias.ndim != 0:
        raise ValueError(
            f"{path}: weight {list(weight.shape)} and bias {list(bias.shape)} must be "
            "[E] and []"
        )
    if weight.dtype.kind not in "iuf" or bias.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: weight {weight.dtype} and bias {bias.dtype} must be numbers"
        )
    params = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    return Judge(_linear), params


# By what a role needs (`knobs.needs`).
READERS = {
    "store": datastore.load,
    "table": trigrams.load,
    "codes": _codes,
    "background": _background,
    "judge": _judge,
}
