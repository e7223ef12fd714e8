"""Cross entropy of blockwise heads on a frozen target (arXiv:1811.03115)."""

import dataclasses

import jax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import draft_heads
from pdecode.models.config import Config
from pdecode.train import guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.passes import Pass


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 6
    heads_width: int = 128

    def __post_init__(self):
        sizes = {"num_heads": (1, float("inf")), "heads_width": (1, float("inf"))}
        check_ranges(self, sizes)


NEEDS = guesses.OF_HEADS


def start(config, key, given):
    del given
    own = config.options
    return draft_heads.init(own.num_heads, config.model.width, own.heads_width, key)


def guessed(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, None]:
    """Nats [B, L - 1, K, V] of every id by each head; no gradient to the states."""
    how = passes.of_decoding(model) if how is None else how
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    heads = draft_heads.make_heads(own.num_heads)
    return guesses.of_heads(model, heads, params, target, hidden, tokens), None


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        every, _ = guessed(config.model, own, params, frozen["target"], tokens, how)
        wanted, scored, places = losses.ahead(tokens, own.num_heads, given_ids)
        return losses.mean(losses.of_tokens(every, wanted), scored, places)

    return apply


def figures(config, params, frozen, text, **sizes):
    """Bits a token of each head on a text, the nearest head first."""
    bits, _ = guesses.rates(
        guessed, losses.ahead, config, params, frozen, text, **sizes
    )
    return {"bits_per_token_by_head": bits}


def holds(config):
    return {"kind": "draft_heads", "num_heads": config.options.num_heads}


def decoded_by(options: dict) -> tuple[str, dict]:
    return "blockwise", {"num_draft": options["num_heads"]}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
