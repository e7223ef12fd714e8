"""Cross entropy of blockwise heads on a frozen target (arXiv:1811.03115)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import draft_heads
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 6
    heads_width: int = 128

    def __post_init__(self):
        sizes = {"num_heads": (1, float("inf")), "heads_width": (1, float("inf"))}
        check_ranges(self, sizes)


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="heads guess what a causal target says next; any other has seen it already",
    frozen=("target",),
    can_start=False,
)


def start(config, key, given):
    del given
    own = config.options
    return draft_heads.init(own.num_heads, config.model.width, own.heads_width, key)


def heads_loss(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,
    how: Pass | None = None,
    given_ids: tuple[int, ...] = (),
) -> tuple[Array, Array]:
    """Nats [B, L-1, K] of the token each head predicts, and which are scored."""
    how = passes.of_decoding(model) if how is None else how
    hidden = passes.hidden(how, target, tokens)[:, :-1]
    num_heads = params["up"].shape[0]
    hidden = draft_heads.make_heads(num_heads).apply(
        params, jax.lax.stop_gradient(hidden)
    )
    logits = losses.logits_of(model, target, hidden)
    place = places(tokens.shape[1], num_heads)
    wanted = tokens[:, jnp.minimum(place, tokens.shape[1] - 1)]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    exists = (place < tokens.shape[1])[None]
    return nats, exists & losses.is_scored(wanted, given_ids)


def places(length: int, num_heads: int) -> Array:
    """int32 [L-1, K]: the position that head k predicts at each position."""
    # tokens a b c d e: at a, the target predicts b, head 1 c, head 2 d
    return jnp.arange(length - 1)[:, None] + 2 + jnp.arange(num_heads)[None, :]


def loss(config):
    how, given_ids = passes.of_run(config), config.given_ids

    def apply(params, frozen, batch, key, step):
        del key, step
        target, tokens = frozen["target"], batch["tokens"]
        found = heads_loss(config.model, params, target, tokens, how, given_ids)
        return losses.mean(*found, places(tokens.shape[1], found[0].shape[2]))

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
def _heads_rows(model, given_ids, params, target, rows, scored):
    nats, counted = heads_loss(model, params, target, rows, None, given_ids)
    length = rows.shape[1]
    place = places(length, counted.shape[2])
    counted = counted & scored[:, jnp.minimum(place, length - 1)]
    total = jnp.sum(jnp.where(counted, nats, 0.0), axis=(0, 1))
    return total, counted.sum((0, 1))


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits a token of each head on a text, the nearest head first."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    nats, counts = np.zeros(()), np.zeros(())
    for part in evaluate.parts(rows):
        arrays = map(put, part)
        some = _heads_rows(
            config.model, text.given_ids, params, frozen["target"], *arrays
        )
        nats, counts = nats + np.asarray(some[0]), counts + np.asarray(some[1])
    bits = evaluate.bits(nats) / np.maximum(counts, 1)
    return {"bits_per_token_by_head": bits.tolist()}


def holds(config):
    return {"kind": "draft_heads", "num_heads": config.options.num_heads}


def decoded_by(options: dict) -> tuple[str, dict]:
    return "blockwise", {"num_draft": options["num_heads"]}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
