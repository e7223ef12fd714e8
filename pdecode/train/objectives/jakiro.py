"""Jakiro: a draft layer of two experts on a frozen target, two features at a time.

Huang et al., 2025, arXiv:2502.06282. At each token the layer guesses the target's
feature there and the one behind; each has EAGLE's loss (arXiv:2401.15077), the second
times `ahead_weight`. Only the layer learns.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models import jakiro_layers
from pdecode.models.config import Config
from pdecode.train import evaluate, losses
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import eagle
from pdecode.train.objectives.eagle import Guessed
from pdecode.train.passes import Pass, of_run

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    feature_weight: float = 1.0
    law_weight: float = 0.1
    ahead_weight: float = 0.5
    feature_noise: float = 0.2  # as EAGLE's

    def __post_init__(self):
        ranges = {"feature_weight": (0, INF), "law_weight": (0, INF)}
        ranges |= {"ahead_weight": (0, INF), "feature_noise": (0, INF)}
        check_ranges(self, ranges)
        if not self.feature_weight and not self.law_weight:
            raise ValueError("feature_weight=0 and law_weight=0: nothing is learnt")


def start(config, key, given):
    del given
    return jakiro_layers.init(config.model, key)


def guessed(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    shaken: Array | None = None,  # [B, L - 1, E]  added to the features that are read
    how: Pass | None = None,
) -> Guessed:
    """What the layer says at every token but the first; leaves are [B, L - 1, 2, ...].

    Of a b c d: at b the first guess is b's feature, whose law is of c, the second is
    c's. Behind the row's end what is true has no meaning.
    """
    target = jax.lax.stop_gradient(target)
    layer = jakiro_layers.make_layer(model)
    found, hidden = eagle.said(model, layer, params, target, tokens, shaken, how)
    features = found.reshape(*found.shape[:2], 2, model.width)
    place = np.arange(1, tokens.shape[1])[:, None] + np.arange(2)
    true = hidden[:, np.minimum(place, tokens.shape[1] - 1)]
    nats = -jax.nn.log_softmax(losses.logits_of(model, target, features))
    law = jax.nn.softmax(losses.logits_of(model, target, true))
    return Guessed(features, true, nats, law)


def loss(config):
    how, given_ids, own = of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, shaken = batch["tokens"], batch.get("feature_noise")
        found = guessed(config.model, params, frozen["target"], tokens, shaken, how)
        wanted, scored, places = losses.ahead(tokens, 2, given_ids)
        rate = jnp.array([1.0, own.ahead_weight])
        value, aux = losses.weighted(eagle.apart(found, own), scored, rate)
        nats = losses.of_tokens(found.nats, wanted)
        return value, aux | {"nats": nats, "places": places}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _guess_rows(model, given_ids, params, target, rows, scored):
    found = guessed(model, params, target, rows)
    wanted, counted, place = losses.ahead(rows, 2, given_ids)
    counted &= scored[:, jnp.minimum(place, rows.shape[1] - 1)]
    agrees = jnp.argmin(found.nats, -1) == jnp.argmax(found.law, -1)
    sums = [losses.of_tokens(found.nats, wanted), agrees, jnp.ones(wanted.shape)]
    return jnp.stack(
        [jnp.where(counted, each, 0.0).sum((0, 1), jnp.float32) for each in sums]
    )


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Of the first and of the second guess on true features: bits a token, and how
    often the best token is the target's."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    sums = np.zeros((3, 2))
    for part in evaluate.parts(rows):
        target, given_ids = frozen["target"], text.given_ids
        sums += np.asarray(
            _guess_rows(config.model, given_ids, params, target, *map(put, part))
        )
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_guess": bits.tolist(),
        "agreement_by_guess": (sums[1] / count).tolist(),
    }


def holds(config):
    del config
    return {"kind": "jakiro_layer"}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "jakiro", {}


OBJECTIVE = Objective(
    Options, eagle.NEEDS, start, loss, figures, holds, noise=eagle.noise,
    decoded_by=decoded_by,
)  # fmt: skip
