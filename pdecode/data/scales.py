"""Tokens from coarse to fine: residual quantisation over scales of more and more means.

The quantiser of VAR (Tian et al., 2024, arXiv:2404.02905) and of VAT's latents
(arXiv:2412.02202) without a network: a scale of K tokens has the codes nearest to the
means of K equal runs of what the scales before left over, and takes them away from it.
The codebook's first code is zero, so that no scale makes what is left over larger:

    |r - code|^2 = |r - mean|^2 + |mean - code|^2 <= |r - mean|^2 + |mean|^2 = |r|^2
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["decode", "encode", "fit", "z_order"]


def fit(
    features: np.ndarray,
    scales: Sequence[int],
    num_codes: int,
    *,
    rounds: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """A codebook float64 [V, D] for `features` [B, N, D]: k-means over all scales.

    Codes begin as means of what exact scales would leave over, drawn the likelier the
    farther they are from those before (Arthur & Vassilvitskii, 2007); one that no mean
    is nearest to stays. ValueError for fewer than two codes, and for scales that do not
    divide N.
    """
    if num_codes < 2:
        raise ValueError(f"{num_codes=}: the first code is zero, so give two or more")
    features = np.asarray(features, np.float64)
    length, depth = features.shape[1:]
    _check(length, scales)
    left, found = features, []
    for size in scales:
        means = _means(left, size)
        found.append(means.reshape(-1, depth))
        left = left - np.repeat(means, length // size, 1)
    found = np.concatenate(found)
    draw = np.random.default_rng(seed)
    codebook, far = np.zeros((num_codes, depth)), (found**2).sum(-1)
    for code in range(1, num_codes):
        share = far / far.sum() if far.sum() > 0 else None
        codebook[code] = found[draw.choice(len(found), p=share)]
        far = np.minimum(far, ((found - codebook[code]) ** 2).sum(-1))
    for _ in range(rounds):
        ids, means = _encoded(codebook, features, scales)
        for code in range(1, num_codes):
            if (ids == code).any():
                codebook[code] = means[ids == code].mean(0)
    return codebook


def encode(
    codebook: np.ndarray, features: np.ndarray, scales: Sequence[int]
) -> np.ndarray:
    """int32 [B, sum(scales)]: the codes of `features` [B, N, D], scale after scale.

    ValueError for scales that do not divide N.
    """
    features = np.asarray(features, np.float64)
    _check(features.shape[1], scales)
    return _encoded(codebook, features, scales)[0]


def decode(
    codebook: np.ndarray, codes: np.ndarray, scales: Sequence[int], length: int
) -> np.ndarray:
    """float64 [B, N, D] with N = `length`: the sum of what the scales say.

    Codes of the first scales alone give a coarse picture: pass those scales.
    """
    _check(length, scales)
    codes, first = np.asarray(codes), 0
    total = np.zeros((len(codes), length, codebook.shape[1]))
    for size in scales:
        own = codebook[codes[:, first : first + size]]
        total += np.repeat(own, length // size, 1)
        first += size
    return total


def z_order(side: int) -> np.ndarray:
    """int [side * side]: cells of a square by the z-curve; runs of 4^k are squares.

    2 x 2:  0 1 2 3;  4 x 4:  0 1 4 5 2 3 6 7 8 9 12 13 10 11 14 15.
    ValueError for a side that is no power of two.
    """
    if side < 1 or side & (side - 1):
        raise ValueError(f"{side=} must be a power of two")
    row, column = np.divmod(np.arange(side * side), side)
    place = np.zeros_like(row)
    for bit in range(side.bit_length()):
        place |= ((row >> bit & 1) << (2 * bit + 1)) | ((column >> bit & 1) << 2 * bit)
    return np.argsort(place)


def _encoded(codebook, features, scales) -> tuple[np.ndarray, np.ndarray]:
    """(codes int32 [B, T], the means [B, T, D] that they stand for)."""
    left, ids, met = features.copy(), [], []
    for size in scales:
        means = _means(left, size)
        far = ((means[:, :, None] - codebook[None, None]) ** 2).sum(-1)
        ids.append(far.argmin(-1).astype(np.int32))
        met.append(means)
        left = left - np.repeat(codebook[ids[-1]], left.shape[1] // size, 1)
    return np.concatenate(ids, 1), np.concatenate(met, 1)


def _means(values: np.ndarray, size: int) -> np.ndarray:
    """[B, K, D]: the means of `size` equal runs of `values` [B, N, D]."""
    return values.reshape(len(values), size, -1, values.shape[2]).mean(2)


def _check(length: int, scales: Sequence[int]) -> None:
    wrong = [size for size in scales if size < 1 or length % size]
    if wrong or not scales:
        raise ValueError(f"scales={tuple(scales)} must divide {length} positions")
