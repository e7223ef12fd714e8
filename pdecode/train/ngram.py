"""An interpolated Kneser-Ney n-gram model of bytes in numpy: the baseline to beat.

Kneser & Ney, 1995; the interpolated form of Chen & Goodman, 1999. One discount an
order, tuned by coordinate search on the text that is also scored, which favours the
baseline.
"""

from typing import NamedTuple

import numpy as np

from pdecode.data import packing

_BITS = 9  # a token id takes nine bits of a key, so six tokens fit in an int64


class Order(NamedTuple):
    """Counts of one order: an n-gram's, and of its context the total and the types."""

    grams: np.ndarray  # int64 [G], sorted keys of n tokens
    counts: np.ndarray  # int64 [G]  raw at the top order, continuations below
    contexts: np.ndarray  # int64 [C], sorted keys of n - 1 tokens
    totals: np.ndarray  # int64 [C]  sum of the context's counts
    types: np.ndarray  # int64 [C]  different tokens seen after the context


def _keys(tokens: np.ndarray, order: int) -> np.ndarray:
    """int64 [N - order + 1]: each n-gram as one number, its last token lowest."""
    wide = tokens.astype(np.int64)
    count = len(wide) - order + 1
    keys = np.zeros(count, np.int64)
    for place in range(order):
        keys = (keys << _BITS) | wide[place : place + count]
    return keys


def fit(tokens: np.ndarray, order: int = 5) -> list[Order]:
    """Counts of orders 1 .. `order` of a token stream uint16 [N]; BOS is context only.

    Raises ValueError if `order` tokens do not fit into a key.
    """
    if not 1 <= order <= 63 // _BITS:
        raise ValueError(f"order={order} must be in [1, {63 // _BITS}]")
    from pdecode.models.bytes import BOS_ID

    orders = []
    above = None
    for n in range(order, 0, -1):
        if above is None:
            grams, counts = np.unique(_keys(tokens, n), return_counts=True)
        else:
            # Continuation count: different tokens that an n-gram was seen after.
            shorter = above & ((1 << (_BITS * n)) - 1)
            grams, counts = np.unique(shorter, return_counts=True)
        predicted = (grams & ((1 << _BITS) - 1)) != BOS_ID
        above = grams
        contexts, start = np.unique(grams[predicted] >> _BITS, return_index=True)
        orders.append(
            Order(
                grams[predicted],
                counts[predicted],
                contexts,
                np.add.reduceat(counts[predicted], start),
                np.diff(np.append(start, predicted.sum())),
            )
        )
    return orders[::-1]


def _lookup(sorted_keys: np.ndarray, values: np.ndarray, keys: np.ndarray):
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == keys, values[place], 0)


def _probabilities(evidence, discounts) -> np.ndarray:
    prob = np.full(evidence[0][0].shape, 1 / 257)  # 256 bytes and EOS
    for (count, total, types), discount in zip(evidence, discounts, strict=True):
        seen = np.maximum(total, 1)
        mixed = (np.maximum(count - discount, 0) + discount * types * prob) / seen
        prob = np.where(total > 0, mixed, prob)
    return prob


def bits_per_byte(
    orders: list[Order], tokens: np.ndarray, discounts: list[float] | None = None
) -> tuple[float, list[float]]:
    """Bits per byte of a stream, and the discounts used (None: tuned on it, order 1
    first). EOS is predicted and paid for, BOS is given.
    """
    order = len(orders)
    padded = np.concatenate([np.repeat(tokens[:1], order - 1), tokens])
    predicted = np.arange(1, len(tokens))
    predicted = predicted[tokens[1:] < 256 + 3]
    from pdecode.models.bytes import BOS_ID

    predicted = predicted[tokens[predicted] != BOS_ID]
    evidence = []
    for n, level in enumerate(orders, start=1):
        keys = _keys(padded, n)[predicted + order - n]
        evidence.append(
            (
                _lookup(level.grams, level.counts, keys),
                _lookup(level.contexts, level.totals, keys >> _BITS),
                _lookup(level.contexts, level.types, keys >> _BITS),
            )
        )

    def cost(chosen):
        bits = -np.log2(_probabilities(evidence, chosen)).sum()
        return float(bits) / packing.num_bytes(tokens)

    if discounts is not None:
        return cost(discounts), list(discounts)
    best = [0.7] * order
    for _ in range(2):
        for n in range(order):
            grid = np.linspace(0.05, 1.0, 20)
            trials = [[*best[:n], float(d), *best[n + 1 :]] for d in grid]
            best = min(trials, key=cost)
    return cost(best), best
