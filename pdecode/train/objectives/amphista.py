"""Amphista: heads on a frozen target that see each other (arXiv:2406.13170).

Li et al., 2024. The loss is the cross entropy of the token that each head predicts, of
the text's (labels="text") or under the target's own law there ("target"), head k (from
one) times head_decay ** k. The heads learn, the encoder through which they see each
other and the two stages before them; target, head and embedding stay.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models import amphista_heads
from pdecode.models.config import Config
from pdecode.train import guesses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.passes import Pass

LABELS = ("text", "target")


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 5
    head_decay: float = 0.8
    labels: Literal["text", "target"] = "text"

    def __post_init__(self):
        check_ranges(self, {"num_heads": (1, float("inf")), "head_decay": (0, 1)})
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r} must be one of {LABELS}")


NEEDS = guesses.OF_HEADS


def start(config, key, given):
    del given
    return amphista_heads.init(config.model, key, config.options.num_heads)


def guessed(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Nats [B, L - 1, K, V] of every id by each head, and the target's law of them."""
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    heads = amphista_heads.make_heads(model, own.num_heads)
    nats = guesses.of_heads(model, heads, params, target, hidden, tokens)
    return nats, guesses.laws(model, target, hidden, own.num_heads)


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(config.model, own, params, frozen["target"], tokens, how)
        rate = own.head_decay ** jnp.arange(1, own.num_heads + 1)
        return guesses.crossed(found, tokens, given_ids, rate, own.labels)

    return apply


def figures(config, params, frozen, text, **sizes):
    """By head, behind the text's own tokens: bits a token, and how often its best token
    is the target's."""
    bits, right = guesses.rates(
        guessed, guesses.drafted, config, params, frozen, text, **sizes
    )
    return {"bits_per_token_by_head": bits, "agreement_by_head": right}


def holds(config):
    return {"kind": "amphista_heads", "num_heads": config.options.num_heads}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "amphista", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
