"""Medusa-1: heads of residual blocks on a frozen target (arXiv:2401.10774).

Cai et al., 2024. The loss is the cross entropy of the token that each head predicts,
head k (from one) times head_decay ** k. Only the heads learn; the target stays.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models import medusa_heads, transformer
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 5
    num_blocks: int = 1
    head_decay: float = 0.8

    def __post_init__(self):
        ranges = {"num_heads": (1, INF), "num_blocks": (1, INF), "head_decay": (0, 1)}
        check_ranges(self, ranges)


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="heads guess what a causal target says next; any other has seen it already",
    frozen=("target",),
    can_start=False,
)


def start(config, key, given):
    del key, given
    own, model = config.options, config.model
    return medusa_heads.init(
        own.num_heads, own.num_blocks, model.width, model.vocab_size
    )


def nats_of(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    own: Options,
    how: Pass | None = None,
) -> Array:
    """Nats [B, L - 1, K, V] of every id by each head; no gradient to `target`."""
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))[:, :-1]
    heads = medusa_heads.make_heads(own.num_heads, own.num_blocks)
    assert heads.own_heads is not None, "of Medusa's"
    ahead = heads.apply(params, hidden)
    each = heads.own_heads(params, transformer.make_model(model).head(target))
    raw = [
        losses.logits_under(model, head, ahead[:, :, k]) for k, head in enumerate(each)
    ]
    return -jax.nn.log_softmax(jnp.stack(raw, 2))


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        every = nats_of(config.model, params, frozen["target"], tokens, own, how)
        wanted, scored, places = losses.ahead(tokens, own.num_heads, given_ids)
        nats = losses.of_tokens(every, wanted)
        rate = own.head_decay ** jnp.arange(1, own.num_heads + 1)
        value, aux = losses.weighted(nats, scored, rate)
        return value, aux | {"nats": nats, "places": places}

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _heads_rows(model, own, given_ids, params, target, rows, scored):
    every = nats_of(model, params, target, rows, own)
    wanted, counted, place = losses.ahead(rows, own.num_heads, given_ids)
    counted &= scored[:, jnp.minimum(place, rows.shape[1] - 1)]
    hits = jnp.argmin(every, -1) == wanted
    sums = [losses.of_tokens(every, wanted), hits, jnp.ones(wanted.shape)]
    return jnp.stack(
        [jnp.where(counted, each, 0.0).sum((0, 1), jnp.float32) for each in sums]
    )


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits a token of each head on a text, the nearest first, and how often its best
    token is right."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    sums = np.zeros((3, config.options.num_heads))
    for part in evaluate.parts(rows):
        sums += np.asarray(
            _heads_rows(
                config.model, config.options, text.given_ids, params,
                frozen["target"], *map(put, part),
            )
        )  # fmt: skip
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_head": bits.tolist(),
        "accuracy_by_head": (sums[1] / count).tolist(),
    }


def holds(config):
    own = config.options
    sizes = {"num_heads": own.num_heads, "num_blocks": own.num_blocks}
    return {"kind": "medusa_heads", **sizes}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "medusa", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
