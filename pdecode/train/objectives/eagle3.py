"""EAGLE-3's draft layer on a frozen target: laws only, over steps of its own guesses.

Li et al., 2025, arXiv:2503.01840 (training-time test). Step 0 reads the target's
features; each later step reads what the layer itself made in the step before, one token
on, as drafting will. The loss of step i is the cross entropy of the layer's law under
the target's, times step_decay ** i. The target and its embedding stay as they are; the
layer's norm and head are its own and learn (the head begins as the target's).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params, Query, Visibility
from pdecode.models import draft_layers
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
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
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    num_steps: int,
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
    law = jax.nn.softmax(losses.logits_of(model, target, output.hidden))
    fed = [layer.read(params, output)[:, :-1]]
    nats, laws = [], []
    for step in range(num_steps):
        query = _lanes(tokens, jnp.concatenate(fed, 1), step)
        found, _ = layer.apply(params, target, query, None)
        here = found[:, -size:]
        hidden, head = layer.law(params, target, here)
        raw = losses.logits_under(model, head, hidden)
        nats.append(-jax.nn.log_softmax(raw))
        laws.append(_ahead(law, 1 + step))
        fed.append(here)
    return jnp.stack(nats, 2), jnp.stack(laws, 2)


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
    read = [_ahead(tokens, 1 + i) for i in range(step + 1)]
    return Query(
        tokens=jnp.concatenate(read, 1),
        positions=place,
        slots=None,
        visible=Visibility(none, none, among=among),
        extra=fed,
    )


def _ahead(leaf: Array, count: int) -> Array:
    """[B, L, ...] -> [B, L - 1, ...]: at t what stands at t + count, or at the end."""
    place = np.minimum(np.arange(leaf.shape[1] - 1) + count, leaf.shape[1] - 1)
    return leaf[:, place]


def _scored(tokens: Array, num_steps: int, given_ids) -> tuple[Array, Array, Array]:
    """As `losses.ahead`; a draft ends at a token that nobody predicts."""
    wanted, scored, places = losses.ahead(tokens, num_steps, given_ids)
    return wanted, jnp.cumprod(scored, 2) > 0, places


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, num_steps = batch["tokens"], own.num_steps
        nats, law = unrolled(
            config.model, params, frozen["target"], tokens, num_steps, how
        )
        wanted, scored, places = _scored(tokens, num_steps, given_ids)
        rate = own.step_decay ** jnp.arange(num_steps)
        value, aux = losses.weighted((law * nats).sum(-1), scored, rate)
        return value, aux | {"nats": losses.of_tokens(nats, wanted), "places": places}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step_rows(model, num_steps, given_ids, params, target, rows, scored):
    nats, law = unrolled(model, params, target, rows, num_steps)
    wanted, counted, place = _scored(rows, num_steps, given_ids)
    counted &= scored[:, jnp.minimum(place, rows.shape[1] - 1)]
    agrees = jnp.argmin(nats, -1) == jnp.argmax(law, -1)
    sums = [losses.of_tokens(nats, wanted), agrees, jnp.ones(wanted.shape)]
    return jnp.stack(
        [jnp.where(counted, each, 0.0).sum((0, 1), jnp.float32) for each in sums]
    )


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """By step, on the text's own tokens: bits a token, and how often the layer's best
    token is the target's."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    num_steps = config.options.num_steps
    sums = np.zeros((3, num_steps))
    for part in evaluate.parts(rows):
        target, given_ids = frozen["target"], text.given_ids
        sums += np.asarray(
            _step_rows(
                config.model, num_steps, given_ids, params, target, *map(put, part)
            )
        )
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_step": bits.tolist(),
        "agreement_by_step": (sums[1] / count).tolist(),
    }


def holds(config):
    return {"kind": "fused_layer", "taps": list(tapped(config.model).taps)}


def decoded_by(options: dict) -> tuple[str, ...]:
    del options
    return "--method", "eagle3"


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
