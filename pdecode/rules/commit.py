"""Commit rules: which open positions of one row to fill in this step.

Rules see one row and are vmapped by the family. "Confidence" of the sampled token is
what papers rank by, and is biased at any temperature above 0 even at one token a step:
choosing a position by the token drawn there favours likely tokens. Orders by entropy,
margin or the largest probability depend on the context alone and are not.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import rng
from pdecode.contracts import Blocks, Prediction, Row, Rule
from pdecode.rules import schedules
from pdecode.sampling import among, ban

__all__ = [
    "ORDERS",
    "Order",
    "above",
    "annealed",
    "as_drawn",
    "bernoulli",
    "best",
    "best_of_each",
    "by_rank",
    "certain",
    "confidence_without",
    "damped",
    "density",
    "entropy_bounded",
    "factor",
    "lead",
    "nearly_best",
    "one_by_one",
    "order",
    "paced",
    "quota",
    "ranks",
    "shared",
    "stateless",
    "sure",
    "threshold",
]


class Order(NamedTuple):
    """A score of open positions, best first, and the leaves it reads."""

    score: Callable[[Array, Row, Prediction], Array]  # -> [W]
    wants: tuple[str, ...]
    is_exact: bool  # blind to the tokens drawn


# Those by the probability of the drawn token are the papers', and biased.
ORDERS = ("low_confidence", "random", "entropy", "margin", "max_prob", "sequential")


def order(name: str) -> Order:
    """The Order called `name`, one of ORDERS; else ValueError.

    "low_confidence" (the papers' name: low confidence is left for later) ranks by the
    log-probability of the sampled token.
    """
    known = {
        "low_confidence": Order(lambda key, row, p: p.log_prob, (), False),
        "random": Order(
            lambda key, row, p: rng.uniform(rng.at(key, row.positions)), (), True
        ),
        "entropy": Order(lambda key, row, p: -p.entropy, ("entropy",), True),
        "margin": Order(lambda key, row, p: p.margin, ("margin",), True),
        "max_prob": Order(lambda key, row, p: p.max_log_prob, ("max_log_prob",), True),
        "sequential": Order(lambda key, row, p: -1.0 * row.positions, (), True),
    }
    if name not in known:
        raise ValueError(f"order {name!r} must be one of {ORDERS}")
    return known[name]


def confidence_without(ids: tuple[int, ...]) -> Order:
    """Confidence of the drawn token in the law without `ids`; these come last."""

    def score(key, row: Row, prediction: Prediction) -> Array:
        del key, row
        log_probs = jax.nn.log_softmax(ban(prediction.logits, ids))
        drawn = prediction.token[..., None]
        return jnp.take_along_axis(log_probs, drawn, -1)[..., 0]

    return Order(score, ("logits",), False)


def damped(ids: tuple[int, ...], factor: Callable[[Row], Array]) -> Order:
    """Confidence of the drawn token, times `factor(row)` where it is one of `ids`."""

    def score(key, row: Row, prediction: Prediction) -> Array:
        del key
        late = among(prediction.token, ids)
        return prediction.log_prob + jnp.where(late, jnp.log(factor(row)), 0)

    return Order(score, (), False)


def density(row: Row, sigma: int) -> Array:
    """[L]: the share of known positions around each, by a Gaussian (d2Cache's prior).

    What lies left of the canvas is known, what lies behind the row's end is known once
    its last position is. Deviation: the Gaussian ends at four `sigma`.
    """
    length, reach = row.masked.shape[0], 4 * sigma
    last = ~row.masked[jnp.maximum(row.end - 1, 0)]
    place = jnp.arange(-reach, length + reach)
    inside = (place >= 0) & (place < row.end)
    here = ~row.masked[jnp.clip(place, 0, length - 1)]
    known = jnp.where(inside, here, (place < 0) | last).astype(jnp.float32)
    kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
    return jnp.convolve(known, kernel, mode="valid") / kernel.sum()


def certain(sigma: int) -> Order:
    """Confidence of the drawn token, times the `density` around its position."""

    def score(key, row: Row, prediction: Prediction) -> Array:
        del key
        return jnp.exp(prediction.log_prob) * density(row, sigma)[row.positions]

    return Order(score, (), False)


def stateless(
    apply: Callable[[Array, Row, Prediction], Array], wants: tuple[str, ...] = ()
) -> Rule:
    """A Rule without memory from apply(key, row, prediction) -> bool [W]."""
    return Rule(
        init=lambda length: (),
        apply=lambda params, key, row, prediction, memory: (
            apply(key, row, prediction),
            memory,
        ),
        wants=wants,
    )


def best(score: Array, open_: Array, count: Array | int) -> Array:
    """bool [W]: the `count` open lanes of highest score, ties to the lowest lane."""
    rank = ranks(score, open_)
    return open_ & (rank < count)


def ranks(score: Array, open_: Array) -> Array:
    """int32 [W] rank of each lane by falling score; lanes not open come last."""
    falling = jnp.argsort(jnp.where(open_, -score, jnp.inf), stable=True)
    return jnp.argsort(falling).astype(jnp.int32)


def best_of_each(score: Array, open_: Array, group: Array) -> Array:
    """bool [W]: the best open lane of every group (int32 [W], below W), the first."""
    score = jnp.where(open_, score, -jnp.inf)
    top = jnp.full(score.shape, -jnp.inf, score.dtype).at[group].max(score)
    lane = jnp.arange(len(score), dtype=jnp.int32)
    is_top = open_ & (score == top[group])
    first = jnp.full(score.shape, len(score), jnp.int32)
    first = first.at[group].min(jnp.where(is_top, lane, len(score)))
    return is_top & (first[group] == lane)


def quota(by: Order, steps: int, size: int | None = None) -> Rule:
    """Equal shares of each block over `steps` steps, best first (LLaDA).

    Shares are of the positions that were open when the block began, or of `size`.
    """

    def apply(key, row: Row, prediction):
        whole = row.num_initial if size is None else jnp.int32(size)
        count = schedules.quota(whole, row.step, steps)
        return best(by.score(key, row, prediction), row.open, count)

    return stateless(apply, by.wants)


def shared(by: Order, max_new_tokens: int, steps: int | None, blocks: Blocks) -> Rule:
    """`quota` of `steps` over all blocks of a canvas, or one position a step (None).

    Shares of a block on the absolute grid are of the whole block, as in SDAR's code; a
    prompt's tail in it is not refunded. ValueError if the steps do not divide.
    """
    if steps is None:
        return one_by_one(by)
    length = blocks.length or max_new_tokens
    share = schedules.steps_per_block(max_new_tokens, steps, length)
    rule = quota(by, share, blocks.length if blocks.is_absolute else None)
    # Of a prompt without holes, no block has more open positions than steps.
    return rule._replace(is_exact=by.is_exact and share >= length)


def one_by_one(by: Order) -> Rule:
    """One position a step, best first."""
    rule = stateless(
        lambda key, row, p: best(by.score(key, row, p), row.open, jnp.int32(1)),
        by.wants,
    )
    return rule._replace(is_exact=by.is_exact)


def threshold(level: Array | float) -> Rule:
    """Every position whose token has probability >= `level`, and always the best."""

    def apply(key, row: Row, prediction):
        del key
        return sure(jnp.exp(prediction.log_prob), row.open, level)

    return stateless(apply)


def as_drawn(prediction: Prediction, temperature: Array | float) -> Array:
    """Probability [W] of each token in the law it was drawn from, filters included.

    A greedy token has that of the raw law: it is taken whatever the filters say. Ask
    for "sampled_log_prob".
    """
    drawn = jnp.where(temperature > 0, prediction.sampled_log_prob, prediction.log_prob)
    return jnp.exp(drawn)


def annealed(
    key: Array, row: Row, prediction: Prediction, temperature: Array | float, steps: int
) -> Array:
    """MaskGIT's rank of each lane, float32 [W]: its confidence plus Gumbel noise.

    The noise has `temperature`, less by the share of `steps` that were taken.
    """
    noise = rng.gumbel(rng.at(key, row.positions), 1)[..., 0]
    fades = temperature * (1 - (row.step + 1) / steps)
    return prediction.log_prob + fades * noise


def above(by: Order, level: Array | float) -> Rule:
    """Every position whose score is >= `level`, and always the best."""

    def apply(key, row: Row, prediction):
        return sure(by.score(key, row, prediction), row.open, level)

    return stateless(apply, by.wants)


def sure(score: Array, open_: Array, level: Array | float) -> Array:
    """bool [W]: the open lanes with score >= `level`, and always the best one."""
    return open_ & (score >= level) | best(score, open_, jnp.int32(1))


def nearly_best(confidence: Array, open_: Array, level: Array | float) -> Array:
    """bool [W]: the open lanes with confidence >= `level` or a hair off the best.

    The hair makes ties go together, and the best pass without a rule (dInfer).
    """
    top = jnp.where(open_, confidence, -1.0).max()
    return open_ & (confidence >= jnp.minimum(level, top - 1e-5))


def factor(bound: Array | float) -> Rule:
    """The n most confident, n the largest with (n + 1)(1 - c_n) < `bound` all along."""

    def apply(key, row: Row, prediction):
        del key
        rank = ranks(prediction.log_prob, row.open)
        falling = jnp.argsort(rank)
        is_met = (rank + 2) * (1 - jnp.exp(prediction.log_prob)) < bound
        in_order = (is_met & row.open)[falling]
        count = jnp.cumprod(in_order).sum()  # stops at the first failure
        return best(prediction.log_prob, row.open, jnp.maximum(count, 1))

    return stateless(apply)


def entropy_bounded(gamma: Array | float, by: Order) -> Rule:
    """The longest prefix of the order with sum(H) - max(H) <= `gamma` nats."""

    def apply(key, row: Row, prediction):
        score = by.score(key, row, prediction)
        rank = ranks(score, row.open)
        falling = jnp.argsort(rank)
        nats = jnp.where(row.open, prediction.entropy, 0)[falling]
        cost = jnp.cumsum(nats) - jax.lax.cummax(nats)
        count = jnp.cumprod(cost <= gamma).sum()
        return best(score, row.open, count)

    return stateless(apply, tuple(dict.fromkeys(("entropy", *by.wants))))


def lead(prediction: Prediction, temperature: Array | float) -> Array:
    """How far the law's best token is above the one drawn, [W], at temperature 0.

    It is above it where the best one may not be drawn: the mask. Else it is 0.
    """
    gap = prediction.max_log_prob - prediction.log_prob
    return jnp.where(temperature > 0, 0.0, gap)


def paced(
    share: Array,
    score: Callable[[Prediction], Array],
    temperature: Array | float,
    noise: Array | float | None = None,
) -> Rule:
    """The best floor(open * share[k]) positions; k skips ahead over empty shares.

    `share` float32 [N] is each step's part of what is open (Dream). A greedy position
    whose best token is the mask spends its share and stays open. `noise`, a
    temperature, draws the positions instead, without replacement.
    """
    num_steps = share.shape[0]

    def apply(params, key, row: Row, prediction, next_step):
        del params
        next_step = jnp.where(row.step == 0, 0, next_step)  # each block has its grid
        num_open = row.open.sum()
        counts = jnp.floor(num_open * share).astype(jnp.int32)
        ready = (counts > 0) & (jnp.arange(num_steps) >= next_step)
        now = jnp.where(ready.any(), jnp.argmax(ready), num_steps - 1)
        ranked = score(prediction)
        if noise is not None:
            places = rng.at(key, row.positions)
            # Gumbel top-n draws n positions without replacement from a softmax.
            ranked = ranked / noise + rng.gumbel(places, 1)[..., 0]
        chosen = best(ranked, row.open, counts[now])
        chosen &= lead(prediction, temperature) <= 0
        return chosen, now.astype(jnp.int32) + 1

    wants = ("max_log_prob", "sampled_margin", "sampled_entropy")
    return Rule(lambda length: jnp.zeros((), jnp.int32), apply, wants)


def bernoulli(probability: Array) -> Rule:
    """Each open position with `probability[turn]` (float32 [N]), blind to its token."""

    def apply(key, row: Row, prediction):
        del prediction
        drawn = rng.uniform(rng.at(key, row.positions))
        return row.open & (drawn < probability[row.turn])

    return stateless(apply)


def by_rank(rank: np.ndarray) -> Rule:
    """A fixed order: each step fills the open positions of lowest rank.

    `rank` int [G] is counted from the row's first open position; equal ranks are filled
    together, and positions past G last of all, together.
    """
    table = jnp.asarray(rank, jnp.int32)

    def apply(key, row: Row, prediction):
        del key, prediction
        index = row.positions - row.start
        inside = (index >= 0) & (index < table.shape[0])
        last = jnp.iinfo(jnp.int32).max - 1
        here = jnp.where(inside, table[jnp.clip(index, 0, table.shape[0] - 1)], last)
        here = jnp.where(row.open, here, last + 1)
        return row.open & (here == here.min())

    is_exact = len(np.unique(rank)) == len(rank)
    return stateless(apply)._replace(is_exact=is_exact)
