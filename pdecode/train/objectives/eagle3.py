"""EAGLE-3's draft layer on a frozen target: laws only, over steps of its own guesses.

Li et al., 2025, arXiv:2503.01840 (training-time test). Step 0 reads the target's
features; each later step reads what the layer itself made in the step before, one token
on, as drafting will. The loss of step i is the cross entropy of the layer's law under
the target's, times step_decay ** i. The target and its embedding stay as they are; the
layer's norm and head are its own and learn (the head begins as the target's).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params, Query, Visibility
from pdecode.models import draft_layers
from pdecode.models.config import Config
from pdecode.train import guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_steps: int = 7
    step_decay: float = 0.8
    # Taps but the last come in through zeros (Hyper-Bagel, arXiv:2509.18824).
    zero_init: bool = False

    def __post_init__(self):
        check_ranges(self, {"num_steps": (1, INF), "step_decay": (0, 1)})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="a draft layer continues the states of a causal target",
    frozen=("target",),
    can_start=False,
)


def start(config, key, given):
    del given
    model = tapped(config.model)
    return draft_layers.init_fused(model, key, config.options.zero_init)


def tapped(model: Config) -> Config:
    """The target with the taps that its layer reads, its own or the default ones."""
    taps = model.taps or draft_layers.default_taps(model.num_layers)
    return dataclasses.replace(model, taps=taps)


def unrolled(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Nats [B, L - 1, S, V] of each id by the layer, and the target's law of them.

    Step i of row t has read tokens up to t + 1 + i, true features up to t and i of its
    own, and predicts token t + 2 + i. Behind the row's end there is no meaning.
    """
    model = tapped(model)
    how = passes.of_decoding(model) if how is None else how
    # Only the transformer's own pass, without recomputing, keeps taps.
    how = how._replace(model=model, forward="transformer", remat=False)
    target = jax.lax.stop_gradient(target)
    output = jax.lax.stop_gradient(passes.run(how, target, tokens))
    layer = draft_layers.make_fused(model)
    size = tokens.shape[1] - 1
    fed = [layer.read(params, output)[:, :-1]]
    nats = []
    for step in range(own.num_steps):
        query = _lanes(tokens, jnp.concatenate(fed, 1), step)
        found, _ = layer.apply(params, target, query, None)
        here = found[:, -size:]
        hidden, head = layer.law(params, target, here)
        raw = losses.logits_under(model, head, hidden)
        nats.append(-jax.nn.log_softmax(raw))
        fed.append(here)
    laws = guesses.laws(model, target, output.hidden, own.num_steps)
    return jnp.stack(nats, 2), laws


def _lanes(tokens: Array, fed: Array, step: int) -> Query:
    """Steps 0 .. `step` of all rows of a text, step by step, as lanes of one call."""
    size = tokens.shape[1] - 1
    row, nth = np.tile(np.arange(size), step + 1), np.repeat(np.arange(step + 1), size)
    # Row t sees true features up to itself, and what it made itself since.
    is_true = (nth == 0)[None] & (row[None] <= row[:, None])
    is_own = (row[None] == row[:, None]) & (nth[None] <= nth[:, None])
    shape = (tokens.shape[0], len(row))
    place = jnp.broadcast_to(jnp.asarray(1 + row + nth, jnp.int32), shape)
    none = jnp.zeros(shape, jnp.int32)
    among = jnp.broadcast_to(jnp.asarray(is_true | is_own), (*shape, len(row)))
    read = [guesses.behind(tokens, 1 + i) for i in range(step + 1)]
    return Query(
        tokens=jnp.concatenate(read, 1),
        positions=place,
        slots=None,
        visible=Visibility(none, none, among=among),
        extra=fed,
    )


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = unrolled(config.model, own, params, frozen["target"], tokens, how)
        rate = own.step_decay ** jnp.arange(own.num_steps)
        return guesses.crossed(found, tokens, given_ids, rate, "target")

    return apply


def figures(config, params, frozen, text, **sizes):
    """By step, on the text's own tokens: bits a token, and how often the layer's best
    token is the target's."""
    bits, right = guesses.rates(
        unrolled, guesses.drafted, config, params, frozen, text, **sizes
    )
    return {"bits_per_token_by_step": bits, "agreement_by_step": right}


def holds(config):
    return {"kind": "fused_layer", "taps": list(tapped(config.model).taps)}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "eagle3", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
