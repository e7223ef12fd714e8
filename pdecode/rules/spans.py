"""Spans of neighbouring positions that are filled whole, one codebook after another."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import (
    Model,
    Params,
    Prediction,
    Prompt,
    Query,
    Row,
    Rule,
    Visibility,
)
from pdecode.kernels.head import dense
from pdecode.rules import commit
from pdecode.sampling import ban

__all__ = ["Score", "cosine", "judged"]

Score = Callable[[Params, Row, Prediction], Array]  # -> [W], of each lane's token


def cosine(frames: int, span_len: int, steps: tuple[int, ...], score: Score) -> Rule:
    """MAGNeT's schedule: a span counts as sure as its best token, and stays once kept.

    A block has `frames` positions and `steps[k]` steps; every step keeps a span.
    """
    table = jnp.asarray(steps, jnp.int32)

    def apply(params, key, row: Row, prediction, memory):
        del key
        span = jnp.maximum(row.positions - row.prompt_end, 0) % frames // span_len
        sure = score(params, row, prediction)
        # Spans are told by their first open lane, whose score is that of the best one.
        best = commit.best_of_each(sure, row.open, span)
        num_spans = -(-row.num_initial // span_len)
        count = table[jnp.minimum(row.block, len(steps) - 1)]
        angle = math.pi / 2 * (row.step + 1) / jnp.maximum(count - 1, 1)
        left = jnp.maximum((jnp.cos(angle) * num_spans).astype(jnp.int32), 1)
        left = jnp.where(row.step + 1 >= count, 0, jnp.minimum(left, best.sum() - 1))
        kept = commit.best(sure, best, best.sum() - left)
        is_kept = jnp.zeros(len(row.positions), bool).at[span].max(kept)
        return row.open & is_kept[span], memory

    return Rule(lambda length: (), apply)


def judged(judge: Model, params: Params, row: Row, prediction: Prediction) -> Array:
    """float32 [L]: log-probability that `judge` gives each token after those before it.

    Of a canvas whose open positions have the tokens drawn now. One causal call; what
    stands at position 0 has none.
    """
    tokens = jnp.where(row.open, prediction.token, row.tokens[row.positions])
    place = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    if judge.max_positions is not None and len(place) > judge.max_positions:
        raise ValueError(
            f"{judge.name} has {judge.max_positions} positions, but the canvas has "
            f"{len(place)}: take a judge of longer texts, or shorter ones"
        )
    one = jnp.zeros(1, jnp.int32)
    among = place[None, :, None] >= place[None, None]
    visible = Visibility(jnp.zeros_like(place)[None], jnp.zeros_like(place)[None])
    query = Query(tokens[None], place[None], None, visible._replace(among=among))
    cache = judge.init_cache(Prompt(tokens[None], one, one, one), 1)
    hidden = judge.apply(params, query, cache)[0].hidden
    banned = () if judge.mask_id is None else (judge.mask_id,)
    raw = ban(dense.logits(judge.head(params), hidden)[0], banned)
    log_probs = jax.nn.log_softmax(raw[:-1])
    told = jnp.take_along_axis(log_probs, tokens[1:, None], 1)[:, 0]
    return jnp.pad(told, (1, 0)).astype(jnp.float32)
