"""What a perfect model loses by deciding several tokens at once.

Kang et al., 2025, arXiv:2510.04767. With exact marginals, tokens decided in one step
are independent: the divergence from the true law is the conditional total correlation
C = sum_i H(y_i | x) - H(y | x), and no model that decides them at once does better. A
schedule of steps pays the sum of the C of its groups, each given those before it.

`total_correlation` and `accuracy` enumerate any law; the functions of n are the closed
forms for a waiting line of n distinct items.
"""

import math
from collections.abc import Sequence

import numpy as np

Groups = Sequence[Sequence[int]]


def total_correlation(strings: np.ndarray, probs: np.ndarray) -> float:
    """C in nats of a law: distinct strings int [K, L], and their probs [K]."""
    return _correlation(np.asarray(strings), np.asarray(probs, np.float64))


def _correlation(strings: np.ndarray, probs: np.ndarray) -> float:
    apart = sum(_entropy(strings[:, i : i + 1], probs) for i in range(strings.shape[1]))
    return apart - _entropy(strings, probs)


def _entropy(columns: np.ndarray, probs: np.ndarray) -> float:
    _, which = np.unique(columns, axis=0, return_inverse=True)
    mass = np.bincount(which.ravel(), probs)
    return float(-(mass * np.log(mass)).sum())


def loss(strings: np.ndarray, probs: np.ndarray, groups: Groups) -> float:
    """The least divergence, in nats, of a schedule that decides group after group.

    sum over t of E[ C(group t | what is decided before it) ]; 0 for one token a step.
    """
    strings, probs = np.asarray(strings), np.asarray(probs, np.float64)
    total, before = 0.0, []
    for group in groups:
        for mass, rows in _given(strings, probs, before):
            law = probs[rows] / mass
            total += mass * _correlation(*_marginal(strings[rows][:, list(group)], law))
        before += list(group)
    return total


def accuracy(strings: np.ndarray, probs: np.ndarray, groups: Groups) -> float:
    """Chance that exact marginals, sampled group after group, end in a right string.

    Right are the strings of the law. A prefix outside it can end in none.
    """
    strings, probs = np.asarray(strings), np.asarray(probs, np.float64)
    chance, before = np.ones(len(strings)), []
    for group in groups:
        for mass, rows in _given(strings, probs, before):
            law = probs[rows] / mass
            for i in group:
                same = strings[rows][:, None, i] == strings[rows][None, :, i]
                chance[rows] *= same @ law
        before += list(group)
    return float(chance.sum())


def simulated(
    strings: np.ndarray, probs: np.ndarray, groups: Groups, num: int, seed: int
) -> np.ndarray:
    """bool [num]: whether each of `num` sampled decodes ended in a right string."""
    strings, probs = np.asarray(strings), np.asarray(probs, np.float64)
    draw = np.random.Generator(np.random.Philox(key=seed))
    made = np.full((num, strings.shape[1]), -1)
    is_right, before = np.ones(num, bool), []
    for group in groups:
        # Decodes that agree so far have one law: they are sampled together.
        prefixes, which = np.unique(made[:, before], axis=0, return_inverse=True)
        for number, prefix in enumerate(prefixes):
            mine = np.flatnonzero(which.ravel() == number)
            rows = (strings[:, before] == prefix).all(1)
            mass = probs[rows].sum()
            if mass == 0:
                is_right[mine] = False
                continue
            for i in group:
                made[mine, i] = draw.choice(
                    strings[rows, i], len(mine), p=probs[rows] / mass
                )
        before += list(group)
    known = {tuple(string) for string in strings.tolist()}
    return is_right & np.array([tuple(row) in known for row in made.tolist()])


def _given(strings: np.ndarray, probs: np.ndarray, before: list[int]):
    """(mass, rows) of the strings that share what stands at `before`."""
    _, which = np.unique(strings[:, before], axis=0, return_inverse=True)
    which = which.ravel() if before else np.zeros(len(strings), int)
    for number in range(which.max() + 1):
        rows = which == number
        yield float(probs[rows].sum()), rows


def _marginal(columns: np.ndarray, probs: np.ndarray):
    distinct, which = np.unique(columns, axis=0, return_inverse=True)
    return distinct, np.bincount(which.ravel(), probs)


def replace_correlation(n: int) -> float:
    """C of replace_random."""
    return (n - 1) * math.log(n / (n - 1))


def replace_accuracy(n: int, sizes: Sequence[int] | None = None) -> float:
    """Of replace_random: one step, or groups of these sizes one after the other."""
    sizes = (n,) if sizes is None else sizes
    total, open_chance, left = 0.0, 1.0, n
    for size in sizes:
        # The one new item falls into this group, and only once.
        total += open_chance * size / left * (1 - 1 / left) ** (size - 1)
        open_chance *= (1 - 1 / left) ** size
        left -= size
    return total


def shuffle_correlation(n: int) -> float:
    """C of a shuffle that may be the identity."""
    return n * math.log(n) - math.lgamma(n + 1)


def shuffle_accuracy(n: int, sizes: Sequence[int] | None = None) -> float:
    """Of such a shuffle: every group must be distinct items of those left."""
    sizes, left, chance = (n,) if sizes is None else sizes, n, 1.0
    for size in sizes:
        chance *= math.perm(left, size) / left**size
        left -= size
    return chance


def insert_accuracy(n: int) -> float:
    """Of insert_random in one step: one term for each place of the new item."""
    keep = [(n - i) / (n + 1) for i in range(n + 1)]  # x_i at place i
    moved = [i / (n + 1) for i in range(n + 1)]  # x_{i-1} at place i
    return sum(
        math.prod(keep[:place]) * math.prod(moved[place + 1 :]) / (n + 1)
        for place in range(n + 1)
    )


def remove_accuracy(n: int) -> float:
    """Of remove_random in one step: one term for each item that is gone."""
    keep = [(n - 1 - i) / n for i in range(n - 1)]
    moved = [(i + 1) / n for i in range(n - 1)]
    return sum(math.prod(keep[:gone]) * math.prod(moved[gone:]) for gone in range(n))


def latin_correlation(n: int = 4, num_squares: int = 576) -> float:
    """C of a uniform law over all Latin squares of n given symbols."""
    return n * n * math.log(n) - math.log(num_squares)
