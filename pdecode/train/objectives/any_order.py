"""Cross entropy of every token in a random order, asked by a query at its position.

The any-order models of ARPG (Li et al., 2025, arXiv:2503.10568) and LPD (Zhang et al.,
2025, arXiv:2507.01957), on one transformer: a row is read twice in one pass, as tokens
and as queries, which are masks at the same positions. Tokens have ranks, a random order
cut into groups. A token sees those of its own group and of earlier ones; a query sees
the tokens of earlier groups, and the queries of its own. That is what the frontier
family asks: stored tokens never see what comes later, and nobody stores a query. With
`is_two_pass` the network is ARPG's own, `models.two_pass`, whose queries see no others.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params, Query, Visibility
from pdecode.models import transformer, two_pass
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives.autoregressive import without_first
from pdecode.train.passes import Pass

_NUM_SAMPLES = 4  # orders of a figure, for every row


@dataclasses.dataclass(frozen=True)
class Options:
    grouped: float = 0.5  # rows whose order is cut into groups; others: one by one
    # Rows of which a random part is told at once and the rest one by one, left to
    # right: any-subset models (Guo & Ermon, 2025, arXiv:2504.20456), as `assd` decodes.
    subset: float = 0.0
    drop_first: float = 0.0  # rows whose first token, such as a class, is not told
    is_two_pass: bool = False  # ARPG's network in place of a transformer

    def __post_init__(self):
        shares = dict.fromkeys(("grouped", "subset", "drop_first"), (0, 1))
        check_ranges(self, shares)


NEEDS = Needs(
    attention=("causal",),
    predicts=("masked",),
    why="what is stored may not see what comes later, and masks ask at any position",
    mask=True,
)


def start(config, key, given):
    if not config.options.is_two_pass:
        return transformer.init(config.model, key) if given is None else given
    if given is not None:
        raise ValueError(
            f"start_from={config.start_from!r} with is_two_pass=True: a transformer's "
            "parameters are not those of the two-pass network"
        )
    if (config.forward, config.remat, config.matmul_dtype) != (
        "transformer",
        False,
        "float32",
    ):
        raise ValueError(
            f"is_two_pass=True needs forward='transformer' (not {config.forward!r}), "
            "remat=False and matmul_dtype='float32'"
        )
    return two_pass.init(config.model, key)


def random_ranks(shape: tuple[int, ...], key: Array, grouped: float = 0.0) -> Array:
    """int32 [B, L]: the first position is 0, the others 1, 2, .. in a random order.

    A fraction of the rows has groups instead, K of them with K random and sizes that
    grow with a cosine, as decoders ask for them. `key` is consumed.
    """
    batch, rest = shape[0], shape[1] - 1
    key_order, key_some, key_count = jax.random.split(key, 3)
    drawn = jax.random.uniform(key_order, (batch, rest))
    rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
    # Position n of N is in group s of K where N (1 - cos(pi/2 s/K)) <= n.
    most = max(math.log(rest), 0.0)
    count = jnp.exp(jax.random.uniform(key_count, (batch, 1), maxval=most))
    progress = jnp.arccos(1 - rank / rest) * 2 / jnp.pi
    group = jnp.floor(jnp.ceil(count) * progress).astype(jnp.int32)
    is_some = jax.random.uniform(key_some, (batch, 1)) < grouped
    rank = 1 + jnp.where(is_some, group, rank)
    return jnp.pad(rank, ((0, 0), (1, 0))).astype(jnp.int32)


def subset_ranks(shape: tuple[int, ...], key: Array) -> Array:
    """int32 [B, L]: 0 for what is told, 1, 2, .. for the rest from left to right.

    From 0.15 to 0.9 of a row is not told, which is where the paper's curriculum begins
    and ends; the first position always is. `key` is consumed.
    """
    key_rate, key_asked = jax.random.split(key)
    rate = jax.random.uniform(key_rate, (shape[0], 1), minval=0.15, maxval=0.9)
    asked = jax.random.uniform(key_asked, shape) < rate
    asked = asked.at[:, 0].set(False)
    return jnp.where(asked, jnp.cumsum(asked, 1), 0).astype(jnp.int32)


def noise(config):
    own = config.options

    def apply(batch, key):
        key_rank, key_drop = jax.random.split(key)
        tokens = without_first(config.model, batch["tokens"], own.drop_first, key_drop)
        rank = random_ranks(tokens.shape, key_rank, own.grouped)
        if own.subset:
            key_some, key_part = jax.random.split(jax.random.fold_in(key, 1))
            is_some = jax.random.uniform(key_some, (len(tokens), 1)) < own.subset
            rank = jnp.where(is_some, subset_ranks(tokens.shape, key_part), rank)
        return {**batch, "tokens": tokens, "rank": rank}

    return apply


def twice(rank: Array) -> Array:
    """What each of 2 L lanes [tokens | queries] sees of them, bool [B, 2 L, 2 L]."""
    theirs, own = rank[:, None, :], rank[:, :, None]
    tokens_see = jnp.concatenate([theirs <= own, jnp.zeros_like(theirs == own)], 2)
    queries_see = jnp.concatenate([theirs < own, theirs == own], 2)
    return jnp.concatenate([tokens_see, queries_see], 1)


def any_order_loss(
    model: Config, params: Params, tokens: Array, rank: Array, how: Pass | None = None
) -> Array:
    """Nats [B, L] of each token given those of lower rank; rank int32 [B, L].

    By the network that `params` are of.
    """
    how = passes.of_decoding(model) if how is None else how
    batch, length = tokens.shape
    assert model.mask_id is not None, "the objective asks for one"
    both = jnp.concatenate([tokens, jnp.full_like(tokens, model.mask_id)], 1)
    place = jnp.broadcast_to(jnp.arange(2 * length) % length, both.shape)
    nowhere = jnp.zeros_like(place)
    visible = Visibility(nowhere, nowhere, among=twice(rank))
    if "shared" in params:
        query = Query(both, place, None, visible)
        is_query = jnp.arange(2 * length)[None] >= jnp.full((batch, 1), length)
        output = two_pass.forward(model, params, query, is_query)
    else:
        output = passes.run(how, params, both, positions=place, visible=visible)
    logits = losses.logits_of(model, params, output.hidden[:, length:])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)


def loss(config):
    how, given_ids = passes.of_run(config), config.given_ids

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens, rank = batch["tokens"], batch["rank"]
        nats = any_order_loss(config.model, params, tokens, rank, how)
        scored = losses.is_scored(tokens, given_ids) & (rank > 0)
        return losses.mean(nats, scored, jnp.arange(tokens.shape[1]))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_nats(model, given_ids, params, rows, scored, key):
    rank = random_ranks(rows.shape, key)
    nats = any_order_loss(model, params, rows, rank)
    counted = scored & losses.is_scored(rows, given_ids) & (rank > 0)
    return jnp.sum(jnp.where(counted, nats, 0.0))


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits a token one by one, the mean over random orders.

    Rows do not overlap but for the first token of each, which is given.
    """
    del frozen
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    total = 0.0
    for sample in range(_NUM_SAMPLES):
        for number, part in enumerate(evaluate.parts(rows)):
            key = jax.random.fold_in(jax.random.key(0), sample * 100_000 + number)
            arrays = map(put, part)
            total += float(
                _row_nats(config.model, text.given_ids, params, *arrays, key)
            )
    bits = evaluate.bits(np.float64(total)) / _NUM_SAMPLES / rows.num_units
    return {f"bits_per_{text.unit}": float(bits)}


def holds(config):
    return {"kind": "two_pass" if config.options.is_two_pass else "transformer"}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
