"""Hidden transfer: maps from a frozen target's states to those of tokens to come.

Wu et al., 2024, arXiv:2404.12022. Behind a few random places of a row stand K pseudo
states (`models.transfers`); the loss is the divergence of the law at each from the
target's own one at the true token of its position, their mean. Only the maps learn.

Deviation: all maps at once; the text is the corpus', not the target's own.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params, Query
from pdecode.models import transfers
from pdecode.models.config import Config
from pdecode.train import evaluate, passes, probes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    layers: tuple[int, ...] = ()  # below each pseudo state; none: half of them, twice
    num_places: int = 16  # of a row, in one pass

    def __post_init__(self):
        check_ranges(self, {"num_places": (1, INF)})
        object.__setattr__(self, "layers", tuple(self.layers))
        if any(
            isinstance(each, bool) or not isinstance(each, int) for each in self.layers
        ):
            raise ValueError(f"layers={self.layers!r} must be ints")


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="pseudo states guess what a causal target says next",
    frozen=("target",),
    can_start=False,
)


def layers(config) -> tuple[int, ...]:
    """How many of the target's layers are below each pseudo state."""
    return config.options.layers or 2 * (config.model.num_layers // 2,)


def start(config, key, given):
    del key, given
    transfers.check(config.model, layers(config))
    return transfers.init(config.model, len(layers(config)))


def noise(config):
    def apply(batch, key):
        shape = batch["tokens"].shape
        return {**batch, "places": probes.drawn(key, shape, config.options.num_places)}

    return apply


def laws(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    places: Array,  # int32 [B, M]
    below: tuple[int, ...],
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Nats [B, M, K, V] of every id at the pseudo states behind places, and the law.

    As `probes.taught`; neither has a gradient to `target`.
    """
    how = passes.of_decoding(model) if how is None else how
    own = dataclasses.replace(
        model, dtype="bfloat16" if how.matmul_dtype == "bfloat16" else model.dtype
    )
    target = jax.lax.stop_gradient(target)

    def run(fed, positions, visible, extra):
        query = Query(fed, positions, None, visible, extra)
        lane = jnp.arange(fed.shape[1])[None]
        is_pseudo = jnp.broadcast_to(lane >= tokens.shape[1], fed.shape)
        found, _ = transfers.run(
            own, below, params, target, query, is_pseudo, remat=how.remat
        )
        return found.hidden

    return probes.taught(run, model, target, tokens, places, len(below))


def loss(config):
    how, given_ids, below = passes.of_run(config), config.given_ids, layers(config)

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, places = batch["tokens"], batch["places"]
        found = laws(config.model, params, frozen["target"], tokens, places, below, how)
        rate = jnp.full(len(below), 1 / len(below))
        return probes.divergence(found, tokens, places, rate, given_ids)

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _state_rows(model, below, num_places, given_ids, params, target, rows, scored):
    places = probes.even(rows.shape, num_places)
    found = laws(model, params, target, rows, places, below)
    return probes.sums(found, rows, places, scored, given_ids)


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """By pseudo state, at places spread over the rows: bits of the text's token, and
    how often its best token is the target's."""
    rows, below = evaluate.rows(text, row_len, row_len - 1, max_rows), layers(config)
    sums = np.zeros((3, len(below)))
    for part in evaluate.parts(rows):
        sums += np.asarray(
            _state_rows(
                config.model, below, config.options.num_places, text.given_ids, params,
                frozen["target"], *map(put, part),
            )
        )  # fmt: skip
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_state": bits.tolist(),
        "agreement_by_state": (sums[1] / count).tolist(),
    }


def holds(config):
    return {"kind": "transfer", "layers": list(layers(config))}


def decoded_by(options: dict) -> tuple[str, dict]:
    count = len(options["layers"]) or 2
    return "hidden_transfer", {"branching": (3, *[1] * (count - 1))}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, noise=noise, decoded_by=decoded_by
)
