"""DREAM's draft layers: the target's laws, its features, and a middle it is sure of.

Hu et al., 2025, arXiv:2505.19201. Three parts at each token: smooth L1 of the layers'
feature to the target's, the divergence of the law read off it from the target's, and
smooth L1 of the stream behind the cross attention to a middle state of the target. The
middle state of a token is that of the layer, among the first `fraction`, whose
attention at the token has the least entropy (of the mean over heads). Features are
shaken as EAGLE's. The layers learn, the target stays. `dream_vlm` decodes the result.

The first `num_given` tokens of a row, such as an image and a question, are not scored.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdecode.contracts import Params, Query, Visibility
from pdecode.kernels.attention import plain
from pdecode.models import cross_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config
from pdecode.sampling import entropy
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import eagle, spec_vlm
from pdecode.train.objectives.eagle import INF, Guessed
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    num_given: int = 0
    fraction: float = 0.4  # of the target's layers that a middle state may be of
    feature_weight: float = 0.2
    law_weight: float = 1.0
    middle_weight: float = 1.0
    feature_noise: float = 0.2

    def __post_init__(self):
        names = ("feature_weight", "law_weight", "middle_weight", "feature_noise")
        ranges = {name: (0, INF) for name in names}
        check_ranges(self, ranges | {"num_given": (0, INF), "fraction": (0, 1)})
        if not (self.feature_weight or self.law_weight or self.middle_weight):
            raise ValueError("all three weights are 0: nothing is learnt")


class Dreamt(NamedTuple):
    """What the layers say of whole rows, at every token but the first."""

    guessed: Guessed
    middle: Array  # [B, L - 1, E]
    true_middle: Array  # [B, L - 1, E]


def start(config, key, given):
    del given
    spec_vlm.check_rows(config, config.options.num_given)
    return cross_layers.init(config.model, key)


def middle_of(
    model: Config, target: Params, tokens: Array, fraction: float
) -> tuple[Array, Array]:
    """The surest middle state [B, L, E] of each token, and its layer, int32 [B, L].

    At least the first layer may be chosen; of equals the lower one is.
    """
    visible, positions = transformer.sequence_visibility(model, tokens)
    query = Query(tokens, positions, None, visible)
    stream, states, spread = transformer.embedded(model, target, query), [], []
    for layer in range(max(1, int(fraction * model.num_layers))):
        own = transformer.own_config(model, layer)
        seen = transformer.visible_of(model, layer, query)
        angles = transformer.angles_of(model, layer, positions)
        (stream, kept), found = parts.Block(own).apply(
            {"params": target[f"layer_{layer}"]},
            stream, angles, seen, None, None, mutable=["intermediates"],
        )  # fmt: skip
        (queries,) = found["intermediates"]["attention"]["queries"]
        scale = model.query_scale
        weights = plain.weights(
            queries, kept["k"], seen,
            scale=model.head_dim**-0.5 if scale is None else scale,
            soft_cap=model.attention_soft_cap,
        )  # fmt: skip
        spread.append(entropy(jnp.log(jnp.maximum(weights, 1e-30))))
        states.append(stream)
    surest = jnp.argmin(jnp.stack(spread), 0)
    chosen = jnp.take_along_axis(jnp.stack(states), surest[None, ..., None], 0)
    return chosen[0], surest


def dreamt(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    shaken: Array | None = None,  # [B, L - 1, E]  added to the features that are read
    how: Pass | None = None,
) -> Dreamt:
    """The layers on the target's features of whole rows, without a slope to these."""
    target = jax.lax.stop_gradient(target)
    true, read = spec_vlm.features_of(model, target, tokens, shaken, how)
    place = jnp.arange(tokens.shape[1] - 1, dtype=jnp.int32)
    place = jnp.broadcast_to(place, read[:, 1:].shape[:2])
    query = Query(
        tokens=tokens[:, 1:],
        positions=1 + place,
        slots=None,
        visible=Visibility(jnp.zeros_like(place), place + 1),
        extra=read[:, :-1],
    )
    made, middle = cross_layers.run(model, params, target, query)
    found = spec_vlm.of_guesses(model, target, made, true[:, 1:])
    surest, _ = middle_of(model, target, tokens, own.fraction)
    return Dreamt(found, middle, jax.lax.stop_gradient(surest)[:, 1:])


def _far(found: Array, true: Array) -> Array:
    """Smooth L1, the mean over features."""
    return optax.huber_loss(found.astype(jnp.float32), true.astype(jnp.float32)).mean(
        -1
    )


def _scored(tokens: Array, own: Options, given_ids) -> Array:
    """bool [B, L - 2] of the tokens from place 2 on."""
    wanted = tokens[:, 2:]
    return spec_vlm.is_answer(wanted, own.num_given, 2) & losses.is_scored(
        wanted, given_ids
    )


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        made = dreamt(
            config.model, own, params, frozen["target"], tokens,
            batch.get("feature_noise"), how,
        )  # fmt: skip
        # The last token has no next one: nobody would draft it.
        found, middle, true = jax.tree.map(lambda leaf: leaf[:, :-1], made)
        apart = losses.divergence(found.nats, found.law)
        total = own.law_weight * apart + own.middle_weight * _far(middle, true)
        total += own.feature_weight * _far(found.features, found.true)
        places = jnp.arange(2, tokens.shape[1])
        value, aux = losses.mean(total, _scored(tokens, own, given_ids), places)
        return value, aux | {"nats": losses.of_tokens(found.nats, tokens[:, 2:])}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer_rows(model, own, given_ids, params, target, rows, scored):
    found = dreamt(model, own, params, target, rows).guessed
    counted = _scored(rows, own, given_ids) & scored[:, 2:]
    return eagle.sums(found, rows[:, 2:], counted)


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """As `eagle.figures`."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options, text.given_ids
    of_part = functools.partial(_layer_rows, *static, params, frozen["target"])
    return eagle.of_sums(evaluate.summed(rows, of_part, put))


def holds(config):
    del config
    return {"kind": "cross_layers"}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "dream_vlm", {}


OBJECTIVE = Objective(
    Options,
    eagle.NEEDS,
    start,
    loss,
    figures,
    holds,
    noise=eagle.noise,
    decoded_by=decoded_by,
)
