"""SpecVLM's draft layer: EAGLE's losses behind an image condensed elastically.

Huang et al., 2025, arXiv:2509.11815. A row begins with `num_features` tokens of an
image and `num_question` of a question; the answer behind them is scored. The frozen
target reads all of it as the loss is computed (the paper's online distillation: nothing
is stored). Its features of the image are made fewer by one of several operators, which
a gate chooses by the question: under Gumbel noise while training, the best at decoding.
The loss of the answer's guesses is EAGLE's: smooth L1 to the target's features and
cross entropy under its laws. The layer, the operators and the gate learn.

What `models.condensers` leaves out holds here too; the gate looks at embeddings.
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
from pdecode.train.objectives import eagle
from pdecode.train.objectives.eagle import INF, Guessed
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    num_features: int = 64  # tokens of an image, at a row's beginning
    num_question: int = 1  # tokens behind them, which are not scored
    # Vectors that each operator makes; 0: there is no such one.
    prune: int = 0
    pool: int = 4
    conv: int = 16
    latents: int = 2
    text_only: bool = False  # an operator that keeps nothing
    feature_weight: float = 1.0
    law_weight: float = 0.1
    feature_noise: float = 0.2

    def __post_init__(self):
        names = ("feature_weight", "law_weight", "feature_noise")
        check_ranges(self, {name: (0, INF) for name in names})
        condensers.check(self.condenser)

    @property
    def condenser(self) -> Condenser:
        names = ("prune", "pool", "conv", "latents")
        counts = [(name, getattr(self, name)) for name in names if getattr(self, name)]
        counts += [("none", 0)] if self.text_only else []
        return Condenser(self.num_features, tuple(counts), self.num_question)


def check_rows(config, num_given: int) -> None:
    """ValueError for rows without two tokens behind the `num_given` that are given."""
    field = "row_len" if config.short_len is None else "short_len"
    if getattr(config, field) < num_given + 2:
        raise ValueError(
            f"{field}={getattr(config, field)} must be at least {num_given + 2}: an "
            f"image and a question of {num_given} tokens, and two behind them"
        )


def start(config, key, given):
    del given
    own = config.options
    check_rows(config, own.num_features + own.num_question)
    return visual_layers.init(config.model, own.condenser, key)


def noise(config):
    shaken, own = eagle.noise(config), config.options.condenser

    def apply(batch, key):
        shape = (batch["tokens"].shape[0], len(own.counts))
        drawn = jax.random.gumbel(jax.random.fold_in(key, 1), shape, jnp.float32)
        return {**shaken(batch, key), "gate_noise": drawn}

    return apply


def guessed(
    model: Config,
    condenser: Condenser,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    shaken: Array | None = None,  # [B, L - 1, E]  added to the features that are read
    gate_noise: Array | None = None,  # float32 [B, operators]
    how: Pass | None = None,
) -> Guessed:
    """What the layer says at each token behind the image, [B, L - C, ..]."""
    true, read = features_of(model, target, tokens, shaken, how)
    target = jax.lax.stop_gradient(target)
    made = visual_layers.read_rows(
        model, condenser, params, target, tokens, read, gate_noise
    )
    return of_guesses(model, target, made, true[:, condenser.num_features :])


def features_of(model, target, tokens, shaken, how) -> tuple[Array, Array]:
    """The target's features [B, L, E] without a slope, and what of them is read."""
    how = passes.of_decoding(model) if how is None else how
    true = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    if shaken is None:
        return true, true
    return true, true + jnp.pad(shaken, ((0, 0), (0, 1), (0, 0))).astype(true.dtype)


def of_guesses(model, target, made: Array, true: Array) -> Guessed:
    """Guesses beside what they are of, and the laws the target reads off both."""
    target = jax.lax.stop_gradient(target)
    raw = losses.logits_of(model, target, made)
    law = jax.nn.softmax(losses.logits_of(model, target, true))
    return Guessed(made, true, -jax.nn.log_softmax(raw), law)


def is_answer(tokens: Array, num_given: int, first: int) -> Array:
    """bool [B, N] of the tokens [B, N] from place `first` on: not given."""
    place = first + jnp.arange(tokens.shape[1])[None]
    return jnp.broadcast_to(place >= num_given, tokens.shape)


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(
            config.model, own.condenser, params, frozen["target"], tokens,
            batch.get("feature_noise"), batch["gate_noise"], how,
        )  # fmt: skip
        first = own.num_features + 1
        wanted = tokens[:, first:]
        scored = is_answer(wanted, own.num_features + own.num_question, first)
        scored &= losses.is_scored(wanted, given_ids)
        places = jnp.arange(first, tokens.shape[1])
        return eagle.compared(own, found, wanted, scored, places)

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer_rows(model, condenser, given_ids, params, target, rows, scored):
    found = guessed(model, condenser, params, target, rows)
    first = condenser.num_features + 1
    wanted = rows[:, first:]
    counted = is_answer(wanted, first - 1 + condenser.num_question, first)
    counted &= losses.is_scored(wanted, given_ids) & scored[:, first:]
    return eagle.sums(found, wanted, counted)


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """As `eagle.figures`, of answers, each image condensed as at decoding."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options.condenser, text.given_ids
    of_part = functools.partial(_layer_rows, *static, params, frozen["target"])
    return eagle.of_sums(evaluate.summed(rows, of_part, put))


def holds(config):
    made = config.options.condenser
    return {"kind": "visual_layer", **made._asdict(), "num_ahead": 1}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "spec_vlm", {}


OBJECTIVE = Objective(
    Options,
    eagle.NEEDS,
    start,
    loss,
    figures,
    holds,
    noise=noise,
    decoded_by=decoded_by,
)
