"""FLASH's draft layer: EAGLE's losses of several tokens ahead, behind few latents.

Wang et al., 2025, arXiv:2505.12728. A row begins with `num_features` tokens of an image
and `num_question` of a question; the answer behind them is scored. Of the image the
layer reads `num_latents` vectors, the target's features there under learned queries. At
each token of the text it guesses `num_ahead` features of the target, of the token's
position and of those behind it; each is compared as EAGLE compares its one, and all
count alike. Layer and queries learn. `flash` decodes the result.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models import condensers, visual_layers
from pdecode.models.condensers import Condenser
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import eagle, spec_vlm
from pdecode.train.objectives.eagle import INF, Guessed
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    num_features: int = 64  # tokens of an image, at a row's beginning
    num_question: int = 1  # tokens behind them, which are not scored
    num_latents: int = 8
    num_ahead: int = 3  # features of an answer
    feature_weight: float = 1.0
    law_weight: float = 0.1
    feature_noise: float = 0.2

    def __post_init__(self):
        names = ("feature_weight", "law_weight", "feature_noise")
        check_ranges(self, {name: (0, INF) for name in names} | {"num_ahead": (1, INF)})
        condensers.check(self.condenser)

    @property
    def condenser(self) -> Condenser:
        counts = (("latents", self.num_latents),)
        return Condenser(self.num_features, counts, self.num_question)


def start(config, key, given):
    del given
    own = config.options
    spec_vlm.check_rows(config, own.num_features + own.num_question)
    return visual_layers.init(config.model, own.condenser, key, own.num_ahead)


def guessed(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    shaken: Array | None = None,  # [B, L - 1, E]  added to the features that are read
    how: Pass | None = None,
) -> Guessed:
    """What the layer says at each token behind the image, [B, L - C, A, ..].

    Guess i at token t is the feature of position t + i; behind the row's end there is
    no meaning.
    """
    target = jax.lax.stop_gradient(target)
    true, read = spec_vlm.features_of(model, target, tokens, shaken, how)
    made = visual_layers.read_rows(model, own.condenser, params, target, tokens, read)
    made = made.reshape(*made.shape[:2], own.num_ahead, model.width)
    place = own.num_features + jnp.arange(made.shape[1])[:, None]
    place = place + jnp.arange(own.num_ahead)[None]
    ahead = true[:, jnp.minimum(place, tokens.shape[1] - 1)]
    return spec_vlm.of_guesses(model, target, made, ahead)


def answers(tokens: Array, own: Options, given_ids) -> tuple[Array, Array, Array]:
    """The token behind each guess but the last one's, whether it counts, and where."""
    first = own.num_features - 1
    found = losses.ahead(tokens[:, first:], own.num_ahead, given_ids)
    wanted, scored, places = found[0][:, :-1], found[1][:, :-1], first + found[2][:-1]
    is_answer = places >= own.num_features + own.num_question
    return wanted, scored & is_answer[None], places


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(
            config.model, own, params, frozen["target"], tokens,
            batch.get("feature_noise"), how,
        )  # fmt: skip
        return eagle.compared(own, found, *answers(tokens, own, given_ids))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer_rows(model, own, given_ids, params, target, rows, scored):
    found = guessed(model, own, params, target, rows)
    wanted, counted, places = answers(rows, own, given_ids)
    counted &= scored[:, jnp.minimum(places, rows.shape[1] - 1)]
    return jnp.stack(
        [
            eagle.sums(
                Guessed(*(leaf[:, :, i] for leaf in found)),
                wanted[..., i], counted[..., i],
            )
            for i in range(own.num_ahead)
        ]
    )  # fmt: skip


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """As `eagle.figures`, of answers, by how far ahead a guess is."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options, text.given_ids
    of_part = functools.partial(_layer_rows, *static, params, frozen["target"])
    each = [eagle.of_sums(row) for row in evaluate.summed(rows, of_part, put)]
    return {f"{name}_ahead": [found[name] for found in each] for name in each[0]}


def holds(config):
    own = config.options
    made = own.condenser._asdict()
    return {"kind": "visual_layer", **made, "num_ahead": own.num_ahead}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "flash", {}


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
