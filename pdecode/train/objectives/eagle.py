"""EAGLE's draft layer on a frozen target: features by regression, laws by distillation.

Li et al., 2024, arXiv:2401.15077. At each token the layer guesses the target's feature;
the loss is smooth L1 to the true one, and the cross entropy of the law that the
target's head reads off the guess, under the law that it reads off the truth. Only the
layer learns: embedding, head and target stay as they are.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import DraftLayer, Params
from pdecode.models import draft_layers
from pdecode.models.config import Config
from pdecode.train import evaluate, guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_layers: int = 1
    feature_weight: float = 1.0
    law_weight: float = 0.1
    feature_noise: float = 0.2  # of rows of 512; shorter ones get more, as released

    def __post_init__(self):
        ranges = {"num_layers": (1, INF), "feature_noise": (0, INF)}
        ranges |= {"feature_weight": (0, INF), "law_weight": (0, INF)}
        check_ranges(self, ranges)
        if not self.feature_weight and not self.law_weight:
            raise ValueError("feature_weight=0 and law_weight=0: nothing is learnt")


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="a draft layer continues the states of a causal target",
    frozen=("target",),
    can_start=False,
)


class Guessed(NamedTuple):
    """What the layer says of whole rows, at every token but the first."""

    features: Array  # [B, L - 1, E]
    true: Array  # [B, L - 1, E]
    nats: Array  # float32 [B, L - 1, V]  of each id, by the guess
    law: Array  # float32 [B, L - 1, V]  the target's own


def start(config, key, given):
    del given
    return draft_layers.init(config.model, key, config.options.num_layers)


def noise(config):
    def apply(batch, key):
        size = config.options.feature_noise
        if not size:
            return batch
        batch_size, length = batch["tokens"].shape
        shape = (batch_size, length - 1, config.model.width)
        uniform = jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5)
        return {**batch, "feature_noise": uniform * size * 512 / length}

    return apply


def guessed(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    shaken: Array | None = None,  # [B, L - 1, E]  added to the features that are read
    how: Pass | None = None,
    num_layers: int = 1,
) -> Guessed:
    """The layer on the target's features of whole rows, without a gradient to these."""
    target = jax.lax.stop_gradient(target)
    layer = draft_layers.make_layer(model, num_layers)
    features, hidden = said(model, layer, params, target, tokens, shaken, how)
    raw = losses.logits_of(model, target, features)
    law = jax.nn.softmax(losses.logits_of(model, target, hidden[:, 1:]))
    return Guessed(features, hidden[:, 1:], -jax.nn.log_softmax(raw), law)


def said(
    model: Config, layer: DraftLayer, params: Params, target: Params, tokens: Array,
    shaken: Array | None = None, how: Pass | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """What `layer` says [B, L - 1, F] at every token but the first, and the target's
    features [B, L, E]; `target` gets no gradient through these."""
    how = passes.of_decoding(model) if how is None else how
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    # tokens a b c d: the layer reads b beside the feature at a, and guesses that at b
    read = hidden[:, :-1] if shaken is None else hidden[:, :-1] + shaken
    query = guesses.pairs(tokens, read.astype(hidden.dtype))
    return layer.apply(params, target, query, None)[0], hidden


def apart(found: Guessed, own) -> Array:
    """The loss float32 [...] of each guess, by the weights `own` of its two terms."""
    far = optax.huber_loss(
        found.features.astype(jnp.float32), found.true.astype(jnp.float32)
    ).mean(-1)
    crossed = (found.law * found.nats).sum(-1)
    return own.feature_weight * far + own.law_weight * crossed


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(
            config.model, params, frozen["target"], tokens,
            batch.get("feature_noise"), how, own.num_layers,
        )  # fmt: skip
        wanted = tokens[:, 2:]
        scored = losses.is_scored(wanted, given_ids)
        return compared(own, found, wanted, scored, jnp.arange(2, tokens.shape[1]))

    return apply


def compared(own, found: Guessed, wanted: Array, scored: Array, places: Array):
    """The loss and aux of guesses; `wanted` [B, N - 1] are the tokens behind each.

    `own` has the weights of the feature and of the law.
    """
    # The last token has no next one: nobody would draft it.
    found = Guessed(*(leaf[:, :-1] for leaf in found))
    value, aux = losses.mean(apart(found, own), scored, places)
    return value, aux | {"nats": losses.of_tokens(found.nats, wanted)}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer_rows(model, num_layers, given_ids, params, target, rows, scored):
    found = guessed(model, params, target, rows, num_layers=num_layers)
    wanted = rows[:, 2:]
    counted = losses.is_scored(wanted, given_ids) & scored[:, 2:]
    return sums(found, wanted, counted)


def sums(found: Guessed, wanted: Array, counted: Array) -> Array:
    """float32 [3]: nats of the tokens behind, best ones that agree, and their number,
    where `counted`, as in `compared`."""
    agrees = jnp.argmin(found.nats, -1) == jnp.argmax(found.law, -1)
    each = [
        losses.of_tokens(found.nats[:, :-1], wanted),
        agrees[:, :-1],
        jnp.ones(wanted.shape),
    ]
    return jnp.stack([jnp.sum(jnp.where(counted, part, 0.0)) for part in each])


def of_sums(total: np.ndarray) -> dict[str, float]:
    """The figures that `sums` over all rows are."""
    count = max(total[2], 1)
    bits = float(evaluate.bits(total[0]) / count)
    return {"bits_per_token": bits, "agreement": float(total[1] / count)}


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits a token of the layer's law on true features, and how often its best token
    is the target's: what the first level of a greedy chain accepts."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    total = np.zeros(3)
    for part in evaluate.parts(rows):
        total += np.asarray(
            _layer_rows(
                config.model, config.options.num_layers, text.given_ids, params,
                frozen["target"], *map(put, part),
            )
        )  # fmt: skip
    return of_sums(total)


def holds(config):
    return {"kind": "draft_layer", "num_layers": config.options.num_layers}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "eagle", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, noise=noise, decoded_by=decoded_by
)
