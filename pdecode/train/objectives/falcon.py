"""Falcon's block layer on a frozen target, by coupled sequential glancing distillation.

Gao et al., 2024, arXiv:2412.12639. A lane is a token beside the target's feature before
it; in blocks of K it guesses the feature K - 1 positions behind its own. A first pass,
which gets no slope, counts the lanes whose best token is not the target's; of these,
times a rate that falls from 0.45 to 0.1, so many blocks have their first lane replaced
by what it should have said, feature and token, so that the others of the block learn to
go on from there. The loss of the second pass is smooth L1 to the true feature and the
divergence between the laws at a temperature of 0.95 with a tenth of the cross entropy
of the target's best token. Only the layer learns.

Deviations: what was glanced at is not scored, as it has seen its answer; the hard label
is the target's best token where the released code draws it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params, Query, Visibility
from pdecode.models import falcon_layers
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import eagle
from pdecode.train.passes import Pass

INF = float("inf")
_TEMPERATURE = 0.95  # of the laws that are compared
_HARD = 0.1  # share of the hard label in what is learnt of the law


@dataclasses.dataclass(frozen=True)
class Options:
    block_len: int = 2
    num_recurrent: int = 2
    feature_weight: float = 1.0
    law_weight: float = 0.1
    feature_noise: float = 0.2  # as EAGLE's
    glance_start: float = 0.45  # of the lanes that were wrong
    glance_end: float = 0.1

    def __post_init__(self):
        ranges = {"block_len": (2, INF), "num_recurrent": (1, INF)}
        ranges |= {"feature_weight": (0, INF), "law_weight": (0, INF)}
        ranges |= {"feature_noise": (0, INF)}
        ranges |= {"glance_start": (0, 1), "glance_end": (0, 1)}
        check_ranges(self, ranges)
        if not self.feature_weight and not self.law_weight:
            raise ValueError("feature_weight=0 and law_weight=0: nothing is learnt")


class Read(NamedTuple):
    """What the lanes of whole rows read, one at every token but the first."""

    tokens: Array  # int32 [B, L - 1]
    features: Array  # [B, L - 1, E]


def start(config, key, given):
    del given
    return falcon_layers.init(config.model, key, config.options.num_recurrent)


def noise(config):
    shaken = eagle.noise(config)

    def apply(batch, key):
        for_noise, for_order, for_length = jax.random.split(key, 3)
        batch_size, length = batch["tokens"].shape
        block_len = config.options.block_len
        shape = (batch_size, -(-(length - 1) // block_len))
        order = jax.random.uniform(for_order, shape)
        run = jax.random.randint(for_length, shape, 1, block_len)
        return shaken(batch, for_noise) | {"glance_order": order, "glance_run": run}

    return apply


def said(
    model: Config, params: Params, target: Params, read: Read, own: Options
) -> Array:
    """Features [B, L - 1, E] that each lane guesses, K - 1 positions behind its own."""
    layer = falcon_layers.make_layer(model, own.block_len, own.num_recurrent)
    batch, size = read.tokens.shape
    memory = jnp.zeros((batch, layer.num_memories, 2, layer.width), jnp.float32)
    streams, _ = layer.advance(params, target, *read, memory)
    place = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), read.tokens.shape)
    stop = jnp.minimum((place // own.block_len + 1) * own.block_len, size)
    visible = Visibility(jnp.zeros_like(place), stop)
    query = Query(read.tokens, 1 + place, None, visible, streams)
    return layer.apply(params, query, None)[0]


def true(
    model: Config, target: Params, tokens: Array, own: Options, how: Pass | None = None
) -> tuple[Array, Array]:
    """The target's features [B, L, E], and those that the lanes should guess
    [B, L - 1, E], which have no meaning behind the row's end."""
    how = passes.of_decoding(model) if how is None else how
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    place = np.arange(tokens.shape[1] - 1) + own.block_len
    return hidden, hidden[:, np.minimum(place, tokens.shape[1] - 1)]


def answers(tokens: Array, own: Options, given_ids) -> tuple[Array, Array, Array]:
    """Of each lane the token that its guess is of, if it is scored, and its place."""
    length = tokens.shape[1]
    place = np.arange(length - 1) + own.block_len + 1
    wanted = tokens[:, np.minimum(place, length - 1)]
    exists = jnp.asarray(place < length)[None]
    return wanted, exists & losses.is_scored(wanted, given_ids), jnp.asarray(place)


def glanced(wrong: Array, scored: Array, batch: dict, rate, own: Options) -> Array:
    """bool [B, L - 1]: lanes that read what they should have said.

    Of every block that begins with a scored lane as many as there are wrong lanes times
    `rate` (a K-th of it where K > 2), by the order that was drawn, from their first
    lane on; of K > 2 lanes a run of up to K - 1.
    """
    size, block_len = scored.shape[1], own.block_len
    block, nth = np.divmod(np.arange(size), block_len)
    count = jnp.floor((wrong & scored).sum(1) * rate).astype(jnp.int32)
    count = count if block_len == 2 else count // block_len
    # Blocks without a lane to score, or to glance for, come last and are never taken.
    last = np.minimum(np.arange(block[-1] + 1) * block_len + 1, size - 1)
    may = scored[:, ::block_len] & scored[:, last]
    order = jnp.where(may, batch["glance_order"], 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    taken = may & (rank < count[:, None])
    is_run = nth[None] < batch["glance_run"][:, block]
    return taken[:, block] & is_run & scored


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options
    model = config.model

    def apply(params, frozen, batch, key, step):
        del key
        tokens, target = batch["tokens"], jax.lax.stop_gradient(frozen["target"])
        hidden, feature = true(model, target, tokens, own, how)
        read = Read(tokens[:, 1:], hidden[:, :-1] + batch.get("feature_noise", 0.0))
        wanted, scored, place = answers(tokens, own, given_ids)
        its = losses.logits_of(model, target, feature)
        best = jnp.argmax(its, -1)

        still = jax.lax.stop_gradient(params)
        first = losses.logits_of(model, target, said(model, still, target, read, own))
        done = jnp.asarray(step, jnp.float32) / config.steps
        rate = own.glance_end + (own.glance_start - own.glance_end) * (1 - done)
        wrong = jnp.argmax(first, -1) != best
        is_glance = glanced(wrong, scored, batch, rate, own)
        read = Read(
            jnp.where(is_glance, wanted, read.tokens),
            jnp.where(is_glance[..., None], feature, read.features),
        )
        found = said(model, params, target, read, own)
        mine = losses.logits_of(model, target, found)
        far = optax.huber_loss(
            found.astype(jnp.float32), feature.astype(jnp.float32)
        ).mean(-1)
        soft = losses.divergence(
            -jax.nn.log_softmax(mine / _TEMPERATURE), jax.nn.softmax(its / _TEMPERATURE)
        )
        crossed = optax.softmax_cross_entropy_with_integer_labels
        of_law = (1 - _HARD) * soft + _HARD * crossed(mine, best)
        total = own.feature_weight * far + own.law_weight * of_law
        value, aux = losses.mean(total, scored & ~is_glance, place)
        # What a lane says before it may glance.
        return value, aux | {"nats": crossed(first, wanted), "scored": scored}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _lane_rows(model, own, given_ids, params, target, rows, counted):
    hidden, feature = true(model, target, rows, own)
    found = said(model, params, target, Read(rows[:, 1:], hidden[:, :-1]), own)
    raw = losses.logits_of(model, target, found)
    wanted, scored, place = answers(rows, own, given_ids)
    scored &= counted[:, jnp.minimum(place, rows.shape[1] - 1)]
    best = jnp.argmax(losses.logits_of(model, target, feature), -1)
    nats = optax.softmax_cross_entropy_with_integer_labels(raw, wanted)
    sums = [nats, jnp.argmax(raw, -1) == best, jnp.ones(nats.shape)]
    each = jnp.stack([jnp.where(scored, leaf, 0.0).sum(0) for leaf in sums])
    nth = np.arange(rows.shape[1] - 1) % own.block_len
    return jnp.stack([each[:, nth == k].sum(1) for k in range(own.block_len)], 1)


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """By a lane's place in its block, on true features: bits a token, and how often the
    best token is the target's."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options, text.given_ids
    of_part = functools.partial(_lane_rows, *static, params, frozen["target"])
    sums = evaluate.summed(rows, of_part, put)
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_place": bits.tolist(),
        "agreement_by_place": (sums[1] / count).tolist(),
    }


def holds(config):
    own = config.options
    sizes = {"block_len": own.block_len, "num_recurrent": own.num_recurrent}
    return {"kind": "block_layer", **sizes}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "falcon", {}


OBJECTIVE = Objective(
    Options, eagle.NEEDS, start, loss, figures, holds, noise=noise,
    decoded_by=decoded_by,
)  # fmt: skip
