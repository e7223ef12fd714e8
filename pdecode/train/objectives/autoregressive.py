"""Cross entropy of the next token, for causal models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective


@dataclasses.dataclass(frozen=True)
class Options:
    drop_first: float = 0.0  # rows whose first token, such as a class, is not told

    def __post_init__(self):
        check_ranges(self, {"drop_first": (0, 1)})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="a token that sees what comes after it would be trained on its own answer",
)


def start(config, key, given):
    return transformer.init(config.model, key) if given is None else given


def without_first(model: Config, tokens: Array, fraction: float, key: Array) -> Array:
    """Rows [B, L] of which about `fraction` begin with the mask: they tell no class.

    What guidance needs of a model (Ho & Salimans, 2022, arXiv:2207.12598). `key` is
    consumed. ValueError for a model without a mask.
    """
    if not fraction:
        return tokens
    if model.mask_id is None:
        raise ValueError(
            f"drop_first={fraction} puts the mask in place of a row's first token, but "
            "model.mask_id is None"
        )
    drops = jax.random.uniform(key, tokens.shape[:1]) < fraction
    return tokens.at[:, 0].set(jnp.where(drops, model.mask_id, tokens[:, 0]))


def noise(config):
    def apply(batch, key):
        # The first token is never an answer, so it may be changed where it stands.
        fraction = config.options.drop_first
        tokens = without_first(config.model, batch["tokens"], fraction, key)
        return {**batch, "tokens": tokens}

    return apply


def loss(config):
    how, given_ids = passes.of_run(config), config.given_ids

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens = batch["tokens"]
        found = losses.next_token_loss(config.model, params, tokens, how, given_ids)
        return losses.mean(*found, jnp.arange(1, tokens.shape[1]))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_nats(model, given_ids, params, rows, scored):
    nats, counted = losses.next_token_loss(model, params, rows, None, given_ids)
    return jnp.sum(jnp.where(counted & scored[:, 1:], nats, 0.0))


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits per byte or token of a text, in rows that overlap by half.

    So every token but the stream's first sees at least row_len / 2 before it.
    """
    del frozen
    rows = evaluate.rows(text, row_len, row_len // 2, max_rows)
    nats = sum(
        float(_row_nats(config.model, text.given_ids, params, *map(put, part)))
        for part in evaluate.parts(rows)
    )
    return {f"bits_per_{text.unit}": evaluate.bits(nats) / rows.num_units}


def holds(config):
    del config
    return {"kind": "transformer"}


OBJECTIVE = Objective(Options, NEEDS, start, loss, figures, holds, noise=noise)
