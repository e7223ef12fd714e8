"""What no acceptance rule can beat: optimal multi-draft rates, on the host in numpy."""

import numpy as np

__all__ = ["greedy_acceptance", "optimal_acceptance"]


def optimal_acceptance(
    p: np.ndarray, q: np.ndarray, num: int, *, replacement: bool = True
) -> float:
    """The largest probability with which one of `num` drafts from q can be kept.

    p and q are float [V], the token kept must have the law p. Optimal transport is a
    least cut: 1 + min over sets H of p(H) - Q(H), Q the probability that all drafts
    fall in H; the least is among the prefixes of the tokens by falling q / p (Hu et
    al., 2025, arXiv:2502.18779). Without replacement Q is an integral, good to 1e-10.
    ValueError for a number below 1.
    """
    if num < 1:
        raise ValueError(f"{num=} must be at least 1")
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    p, q = p / p.sum(), q / q.sum()
    order = np.argsort(-q / np.maximum(p, 1e-300), kind="stable")
    mass = np.concatenate([[0], np.cumsum(p[order])])
    inside = np.concatenate([[0], np.cumsum(q[order])])
    every = inside**num if replacement else _all_inside(q[order], num)
    return float(1 + (mass - every).min())


def _all_inside(q: np.ndarray, num: int) -> np.ndarray:
    """[V + 1]: the chance that `num` draws without replacement are in each prefix.

    A draw in turn is a race of clocks with rates q: the first `num` to ring are inside
    if the num-th inside rings before the first outside. Where fewer than `num` tokens
    are possible, all of them are drawn.
    """
    num = min(num, int((q > 0).sum()))
    # In the logarithm of time the integrand is analytic and dies off fast on both
    # sides: equal steps are exact to rounding.
    step = 0.2
    time = np.exp(np.arange(-20, 40, step))
    at_least = np.zeros((num + 1, len(time)))  # exactly j rang; the last: num or more
    at_least[0] = 1
    total, found = q.sum(), [0.0]
    inside = 0.0
    for rate in q:
        inside += rate
        rang = -np.expm1(-rate * time)
        more = at_least * rang
        last = at_least[num].copy()
        at_least = at_least - more
        at_least[1:] += more[:-1]
        at_least[num] = last + more[num - 1]
        outside = max(total - inside, 0.0)
        if outside <= 1e-15:
            found.append(1.0)
            continue
        density = outside * time * np.exp(-outside * time)
        found.append(float(step * (density * at_least[num]).sum()))
    return np.array(found)


def greedy_acceptance(p: np.ndarray, q: np.ndarray, num: int) -> float:
    """The rate of "greedy" drafts: the num - 1 best of q, and one drawn from the rest.

    Multi-round rejection with these laws, the drawn one first, reaches it.
    """
    p, q = np.asarray(p, np.float64), np.array(q, np.float64)
    best = np.argsort(-q, kind="stable")[: num - 1]
    q[best] = 0
    rest = q / q.sum() if q.sum() > 0 else q
    is_rest = np.ones(len(p), bool)
    is_rest[best] = False
    return float(p[best].sum() + np.minimum(p, rest)[is_rest].sum())
