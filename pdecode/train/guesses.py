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

from pdecode.contracts import ChainedHeads, DraftHeads, Params, Query, Visibility
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses
from pdecode.train.objective import Needs

__all__ = [
    "OF_HEADS",
    "behind",
    "crossed",
    "drafted",
    "laws",
    "of_chained",
    "of_heads",
    "pairs",
    "rates",
    "read_by",
]

OF_HEADS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="heads guess what a causal target says next; any other has seen it already",
    frozen=("target",),
    can_start=False,
)


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


def pairs(tokens: Array, features: Array) -> Query:
    """Tokens [B, L] but the first beside the features [B, L - 1, E] before them."""
    place = jnp.arange(tokens.shape[1] - 1, dtype=jnp.int32)
    place = jnp.broadcast_to(place, features.shape[:2])
    seen = Visibility(jnp.zeros_like(place), place + 1)
    return Query(tokens[:, 1:], 1 + place, None, seen, extra=features)


def read_by(
    heads: DraftHeads | ChainedHeads,
    params: Params,
    target: Params,
    hidden: Array,  # [B, L, E]
    tokens: Array,  # int32 [B, L]
) -> Array:
    """What heads read [B, L - 1, ...]: the target's states, or the layer's on them."""
    if heads.past is None:
        return hidden[:, :-1]
    query = pairs(tokens, hidden[:, :-1])
    return heads.past.apply(params["past"], target, query, None)[0]


def of_chained(
    model: Config,
    heads: ChainedHeads,
    params: Params,
    target: Params,
    hidden: Array,  # [B, L, E]
    tokens: Array,  # int32 [B, L]
) -> tuple[Array, Array]:
    """States [B, L - 1, K, E] of heads that read the text, nats [B, L - 1, K, V]."""
    # tokens a b c d: at a, head 0 reads b and is of c, head 1 reads b c and is of d
    read = jnp.stack([behind(tokens, 1 + i) for i in range(heads.num_heads)], -1)
    state = read_by(heads, params, target, hidden, tokens)
    states, nats = [], []
    for index in range(heads.num_heads):
        found, head = heads.apply(params, target, index, state, read[..., : index + 1])
        states.append(found)
        nats.append(-jax.nn.log_softmax(losses.logits_under(model, head, found)))
    return jnp.stack(states, 2), jnp.stack(nats, 2)


def of_heads(
    model: Config,
    heads: DraftHeads,
    params: Params,
    target: Params,
    hidden: Array,  # [B, L, E]
    tokens: Array,  # int32 [B, L]
) -> Array:
    """Nats [B, L - 1, K, V] of heads none of which sees another's token."""
    ahead = heads.apply(params, read_by(heads, params, target, hidden, tokens))
    its = transformer.make_model(model).head(target)
    if heads.own_heads is None:
        return -jax.nn.log_softmax(losses.logits_under(model, its, ahead))
    raw = [
        losses.logits_under(model, head, ahead[:, :, k])
        for k, head in enumerate(heads.own_heads(params, its))
    ]
    return -jax.nn.log_softmax(jnp.stack(raw, 2))


def laws(model: Config, target: Params, hidden: Array, count: int) -> Array:
    """The target's own law [B, L - 1, K, V] where each of `count` guesses is."""
    law = jax.nn.softmax(losses.logits_of(model, target, hidden))
    return jnp.stack([behind(law, 1 + index) for index in range(count)], 2)


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
