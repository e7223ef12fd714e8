"""Hydra: heads on a frozen target that see the tokens between (arXiv:2402.05109).

Ankner et al., 2024. Head i (from zero) reads the state at a token and the true tokens
behind it up to its own; the loss is the sum of the heads' cross entropies, of the
text's token (labels="text") or under the target's own law there (labels="target", the
self-distillation of Hydra++). Only the heads learn; target and embedding stay. Hydra++
is labels="target" with num_layers=4 blocks a head and prefix_attention, a causal layer
over the target's states before all heads; the paper's dropout of 0.2 is left out.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models import hydra_heads
from pdecode.models.config import Config
from pdecode.train import guesses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.passes import Pass

LABELS = ("text", "target")


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 4
    labels: Literal["text", "target"] = "text"
    num_layers: int = 1
    prefix_attention: bool = False

    def __post_init__(self):
        ranges = {"num_heads": (1, float("inf")), "num_layers": (1, float("inf"))}
        check_ranges(self, ranges)
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r} must be one of {LABELS}")


NEEDS = guesses.OF_HEADS


def start(config, key, given):
    del given
    own = config.options
    prefix_key = key if own.prefix_attention else None
    return hydra_heads.init(config.model, own.num_heads, own.num_layers, prefix_key)


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
    heads = hydra_heads.make_heads(
        model, own.num_heads, own.num_layers, own.prefix_attention
    )
    _, nats = guesses.of_chained(model, heads, params, target, hidden, tokens)
    return nats, guesses.laws(model, target, hidden, own.num_heads)


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(config.model, own, params, frozen["target"], tokens, how)
        rate = jnp.ones(own.num_heads)
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
    own = config.options
    return {
        "kind": "hydra_heads",
        "num_heads": own.num_heads,
        "num_layers": own.num_layers,
        "prefix_attention": own.prefix_attention,
    }


def decoded_by(options: dict) -> tuple[str, dict]:
    widths = [4, 2] + [1] * options["num_heads"]
    return "hydra", {"branching": tuple(widths[: options["num_heads"]])}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
