"""Hydra: heads on a frozen target that see the tokens between (arXiv:2402.05109).

Ankner et al., 2024. Head i (from zero) reads the state at a token and the true tokens
behind it up to its own; the loss is the sum of the heads' cross entropies, of the
text's token (labels="text") or under the target's own law there (labels="target", the
self-distillation of Hydra++). Only the heads learn; target and embedding stay.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models import hydra_heads
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

LABELS = ("text", "target")


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 4
    labels: Literal["text", "target"] = "text"

    def __post_init__(self):
        check_ranges(self, {"num_heads": (1, float("inf"))})
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r} must be one of {LABELS}")


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="heads guess what a causal target says next; any other has seen it already",
    frozen=("target",),
    can_start=False,
)


def start(config, key, given):
    del key, given
    return hydra_heads.init(config.model, config.options.num_heads)


def nats_of(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    num_heads: int,
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Nats [B, L - 1, K, V] of every id by each head, and the target's law of them."""
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    law = jax.nn.softmax(losses.logits_of(model, target, hidden))
    heads = hydra_heads.make_heads(model, num_heads)
    # tokens a b c d: at a, head 0 reads b and is of c, head 1 reads b c and is of d
    read = jnp.stack([_ahead(tokens, 1 + i) for i in range(num_heads)], -1)
    nats = []
    for index in range(num_heads):
        found, head = heads.apply(
            params, target, index, hidden[:, :-1], read[..., : index + 1]
        )
        raw = losses.logits_under(model, head, found)
        nats.append(-jax.nn.log_softmax(raw))
    laws = [_ahead(law, 1 + index) for index in range(num_heads)]
    return jnp.stack(nats, 2), jnp.stack(laws, 2)


def _ahead(leaf: Array, count: int) -> Array:
    """[B, L, ...] -> [B, L - 1, ...]: at t what stands at t + count, or at the end."""
    place = np.minimum(np.arange(leaf.shape[1] - 1) + count, leaf.shape[1] - 1)
    return leaf[:, place]


def _scored(tokens: Array, num_heads: int, given_ids) -> tuple[Array, Array, Array]:
    """As `losses.ahead`; a draft ends at a token that nobody predicts."""
    wanted, scored, places = losses.ahead(tokens, num_heads, given_ids)
    return wanted, jnp.cumprod(scored, 2) > 0, places


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, target = batch["tokens"], frozen["target"]
        every, law = nats_of(config.model, params, target, tokens, own.num_heads, how)
        wanted, scored, places = _scored(tokens, own.num_heads, given_ids)
        nats = losses.of_tokens(every, wanted)
        crossed = nats if own.labels == "text" else (law * every).sum(-1)
        value, aux = losses.weighted(crossed, scored, jnp.ones(own.num_heads))
        return value, aux | {"nats": nats, "places": places}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _heads_rows(model, num_heads, given_ids, params, target, rows, scored):
    every, law = nats_of(model, params, target, rows, num_heads)
    wanted, counted, place = _scored(rows, num_heads, given_ids)
    counted &= scored[:, jnp.minimum(place, rows.shape[1] - 1)]
    agrees = jnp.argmin(every, -1) == jnp.argmax(law, -1)
    sums = [losses.of_tokens(every, wanted), agrees, jnp.ones(wanted.shape)]
    return jnp.stack(
        [jnp.where(counted, each, 0.0).sum((0, 1), jnp.float32) for each in sums]
    )


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """By head, behind the text's own tokens: bits a token, and how often its best token
    is the target's."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    num_heads = config.options.num_heads
    sums = np.zeros((3, num_heads))
    for part in evaluate.parts(rows):
        target, given_ids = frozen["target"], text.given_ids
        sums += np.asarray(
            _heads_rows(
                config.model, num_heads, given_ids, params, target, *map(put, part)
            )
        )
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_head": bits.tolist(),
        "agreement_by_head": (sums[1] / count).tolist(),
    }


def holds(config):
    return {"kind": "hydra_heads", "num_heads": config.options.num_heads}


def decoded_by(options: dict) -> tuple[str, dict]:
    widths = [4, 2] + [1] * options["num_heads"]
    return "hydra", {"branching": tuple(widths[: options["num_heads"]])}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
