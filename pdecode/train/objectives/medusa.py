"""Medusa-1: heads of residual blocks on a frozen target (arXiv:2401.10774).

Cai et al., 2024. The loss is the cross entropy of the token that each head predicts,
head k (from one) times head_decay ** k. Only the heads learn; the target stays.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models import medusa_heads
from pdecode.models.config import Config
from pdecode.train import guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
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


NEEDS = guesses.OF_HEADS


def start(config, key, given):
    del key, given
    own, model = config.options, config.model
    return medusa_heads.init(
        own.num_heads, own.num_blocks, model.width, model.vocab_size
    )


def guessed(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, None]:
    """Nats [B, L - 1, K, V] of every id by each head; no gradient to `target`."""
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    heads = medusa_heads.make_heads(own.num_heads, own.num_blocks)
    return guesses.of_heads(model, heads, params, target, hidden, tokens), None


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(config.model, own, params, frozen["target"], tokens, how)
        rate = own.head_decay ** jnp.arange(1, own.num_heads + 1)
        return guesses.crossed(found, tokens, given_ids, rate, answers=losses.ahead)

    return apply


def figures(config, params, frozen, text, **sizes):
    """Bits a token of each head on a text, the nearest first, and how often its best
    token is right."""
    bits, right = guesses.rates(
        guessed, losses.ahead, config, params, frozen, text, **sizes
    )
    return {"bits_per_token_by_head": bits, "accuracy_by_head": right}


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
