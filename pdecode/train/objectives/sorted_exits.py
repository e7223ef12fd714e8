"""Cross entropy of the next token at every exit of a model: sub-models in one.

S2D's sorted fine-tuning (Kavehzadeh et al., 2024, arXiv:2407.01955): the sub-models
that end at `model.exits` share the last norm and the head, and their losses are
averaged.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.objective import Needs, Objective
from pdecode.train.objectives import autoregressive
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    """None: the exits are the model's own."""


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="a token that sees what comes after it would be trained on its own answer",
    exits=True,
)


def exits_loss(
    how: Pass, params: Params, tokens: Array, given_ids: tuple[int, ...]
) -> tuple[Array, Array]:
    """Nats [B, L-1, K] of each next token at each exit, and which are scored."""
    model = how.model
    layers = [f"layer_{stop - 1}" for stop in model.exits[:-1]]
    how = how._replace(model=dataclasses.replace(model, taps=tuple(layers)))
    output = passes.run(how, params, tokens)
    streams = [
        transformer.final_norm(model, params, output.taps[layer]) for layer in layers
    ]
    hidden = jnp.stack([*streams, output.hidden], 2)[:, :-1]
    logits = losses.logits_of(model, params, hidden)
    wanted = jnp.broadcast_to(tokens[:, 1:, None], logits.shape[:-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return nats, losses.is_scored(wanted, given_ids)


def loss(config):
    how = passes.of_run(config)
    if config.forward == "plain" or config.remat:
        raise ValueError(
            f"forward={config.forward!r} and remat={config.remat}: objective="
            "sorted_exits reads the stream between layers, which only "
            "forward='transformer' without remat keeps"
        )

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens = batch["tokens"]
        nats, scored = exits_loss(how, params, tokens, config.given_ids)
        places = jnp.arange(1, tokens.shape[1])[:, None]
        return losses.mean(nats, scored, jnp.broadcast_to(places, nats.shape[1:]))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_nats(model: Config, given_ids, params, rows, scored):
    how = passes.of_decoding(model)
    nats, counted = exits_loss(how, params, rows, given_ids)
    return jnp.where(counted & scored[:, 1:, None], nats, 0.0).sum((0, 1))


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits per byte or token of a text at each exit, as `autoregressive.figures`."""
    del frozen
    rows = evaluate.rows(text, row_len, row_len // 2, max_rows)
    nats = np.zeros(())
    for part in evaluate.parts(rows):
        arrays = map(put, part)
        some = _row_nats(config.model, text.given_ids, params, *arrays)
        nats = nats + np.asarray(some)
    bits = (evaluate.bits(nats) / rows.num_units).tolist()
    return {f"bits_per_{text.unit}_by_exit": bits}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "s2d", {}


OBJECTIVE = Objective(
    Options,
    NEEDS,
    autoregressive.start,
    loss,
    figures,
    autoregressive.holds,
    decoded_by=decoded_by,
)
