"""Guesses of several tokens behind the next one: their answers, loss and figures.

A guess function is guess(model, own, params, target, tokens, how=None) -> (nats
[B, L - 1, K, V] of every id by each of K guesses, the target's law of them or None).
Of a b c d e: at a the target predicts b, guess 0 is of c and guess 1 of d. `own` are
the objective's options. Answers are those of `losses.ahead`, or `drafted`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.train import evaluate, losses

__all__ = ["behind", "crossed", "drafted", "rates"]


def behind(leaf: Array, count: int) -> Array:
    """[B, L, ...] -> [B, L - 1, ...]: at t what stands at t + count, or at the end."""
    place = np.minimum(np.arange(leaf.shape[1] - 1) + count, leaf.shape[1] - 1)
    return leaf[:, place]


def drafted(tokens: Array, count: int, given_ids) -> tuple[Array, Array, Array]:
    """As `losses.ahead`; a draft ends at a token that nobody predicts."""
    wanted, scored, places = losses.ahead(tokens, count, given_ids)
    return wanted, jnp.cumprod(scored, 2) > 0, places


def crossed(
    found: tuple[Array, Array | None],
    tokens: Array,
    given_ids: tuple[int, ...],
    weights: Array,  # [K]
    labels: str = "text",
    answers=drafted,
) -> tuple[Array, dict[str, Array]]:
    """The loss and `aux` of what a guess function said of `tokens`.

    Cross entropy of the text's token (labels="text") or under the target's own law
    there ("target"), by guess times its weight.
    """
    every, law = found
    wanted, scored, places = answers(tokens, every.shape[2], given_ids)
    nats = losses.of_tokens(every, wanted)
    each = nats
    if labels == "target":
        assert law is not None, "the guess function has to say it"
        each = (law * every).sum(-1)
    value, aux = losses.weighted(each, scored, weights)
    return value, aux | {"nats": nats, "places": places}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sums(guess, answers, model, own, given_ids, params, target, rows, scored):
    every, law = guess(model, own, params, target, rows)
    wanted, counted, place = answers(rows, every.shape[2], given_ids)
    counted &= scored[:, jnp.minimum(place, rows.shape[1] - 1)]
    right = wanted if law is None else jnp.argmax(law, -1)
    hits = jnp.argmin(every, -1) == right
    sums = [losses.of_tokens(every, wanted), hits, jnp.ones(wanted.shape)]
    return jnp.stack(
        [jnp.where(counted, each, 0.0).sum((0, 1), jnp.float32) for each in sums]
    )


def rates(
    guess,
    answers,
    config,
    params,
    frozen,
    text,
    *,
    row_len,
    max_rows=None,
    put=jnp.asarray,
) -> tuple[list[float], list[float]]:
    """By guess, the nearest first, on a text: bits a token, and how often its best one
    is right: the target's best there, or the text's where there is no law of it."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    sums = np.zeros((3, 1))
    for part in evaluate.parts(rows):
        sums = sums + np.asarray(
            _sums(
                guess, answers, config.model, config.options, text.given_ids, params,
                frozen["target"], *map(put, part),
            )
        )  # fmt: skip
    count = np.maximum(sums[2], 1)
    return (evaluate.bits(sums[0]) / count).tolist(), (sums[1] / count).tolist()
