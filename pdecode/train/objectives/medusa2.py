"""Medusa-2: heads and their target trained together (arXiv:2401.10774).

Cai et al., 2024. The loss is the target's own, of the next token, plus heads_weight
times that of Medusa-1's heads. The target's is the cross entropy of the text's token
(labels="text") or under the law of the model that it began as ("target", the paper's
self-distillation; its texts are made by that model, these are whatever the run reads).
For heads_steps steps the heads learn alone; then the target learns too, at a rate
heads_rate times smaller than theirs, the run's.

What comes out is another target, in the folder "model" of the run's; heads decode
without loss relative to that one, and the target that it began as refuses them. The
gradient of the heads reaches the target's layers but not its head, of which each has a
change of its own. Without start_from the target begins at random.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models import medusa_heads, transformer
from pdecode.models.config import Config
from pdecode.train import guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import medusa
from pdecode.train.passes import Pass

INF = float("inf")
LABELS = ("text", "target")


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 5
    num_blocks: int = 1
    head_decay: float = 0.8
    heads_weight: float = 0.2
    heads_steps: int = 0
    heads_rate: float = 4.0
    labels: Literal["text", "target"] = "target"

    def __post_init__(self):
        ranges = {"num_heads": (1, INF), "num_blocks": (1, INF), "head_decay": (0, 1)}
        ranges |= {"heads_weight": (0, INF), "heads_steps": (0, INF)}
        check_ranges(self, ranges | {"heads_rate": (1, INF)})
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r} must be one of {LABELS}")


NEEDS = guesses.OF_HEADS._replace(can_start=True)


def start(config, key, given):
    own, model = config.options, config.model
    heads = medusa_heads.init(
        own.num_heads, own.num_blocks, model.width, model.vocab_size
    )
    return {"model": transformer.init(model, key) if given is None else given, **heads}


def guessed(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, None]:
    """Nats [B, L - 1, 1 + K, V] of every id by the model and by each of its heads."""
    del target
    how = passes.of_decoding(model) if how is None else how
    its = params["model"]
    hidden = passes.hidden(how, its, tokens)
    mine = -jax.nn.log_softmax(losses.logits_of(model, its, hidden[:, :-1]))
    heads = medusa_heads.make_heads(own.num_heads, own.num_blocks)
    # What a head begins with is the model's head as it is, not a part of the head.
    still = jax.lax.stop_gradient(its)
    nats = guesses.of_heads(model, heads, params, still, hidden, tokens)
    return jnp.concatenate([mine[:, :, None], nats], 2), None


def _answers(tokens: Array, count: int, given_ids) -> tuple[Array, Array, Array]:
    """As `losses.ahead`, the first guess being of the next token itself."""
    length = tokens.shape[1]
    place = jnp.arange(length - 1)[:, None] + 1 + jnp.arange(count)[None]
    wanted = tokens[:, jnp.minimum(place, length - 1)]
    exists = (place < length)[None]
    return wanted, exists & losses.is_scored(wanted, given_ids), place


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options
    model = config.model

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        every, _ = guessed(model, own, params, frozen["target"], tokens, how)
        wanted, scored, places = _answers(tokens, every.shape[2], given_ids)
        nats = each = losses.of_tokens(every, wanted)
        if own.labels == "target":
            before = jax.lax.stop_gradient(frozen["target"])
            states = passes.hidden(how, before, tokens)[:, :-1]
            law = jax.nn.softmax(losses.logits_of(model, before, states))
            each = nats.at[:, :, 0].set((law * every[:, :, 0]).sum(-1))
        rate = own.heads_weight * own.head_decay ** jnp.arange(1, own.num_heads + 1)
        rate = jnp.concatenate([jnp.ones(1), rate])
        value, aux = losses.weighted(each, scored, rate)
        return value, aux | {"nats": nats, "places": places}

    return apply


def rates(config, changes, step):
    """Of a step's changes those of the model as small as they are to be."""
    own = config.options
    share = jnp.where(step < own.heads_steps, 0.0, 1 / own.heads_rate)
    return changes | {"model": jax.tree.map(lambda x: share * x, changes["model"])}


def figures(config, params, frozen, text, **sizes):
    """Bits a token of the model on a text, and of each head, the nearest first, and how
    often its best token is right."""
    bits, right = guesses.rates(
        guessed, _answers, config, params, frozen, text, **sizes
    )
    return {
        "bits_per_token": bits[0],
        "bits_per_token_by_head": bits[1:],
        "accuracy_by_head": right[1:],
    }


def holds(config):
    own = config.options
    sizes = {"num_heads": own.num_heads, "num_blocks": own.num_blocks}
    return {"kind": "medusa_heads", **sizes}


OBJECTIVE = Objective(
    Options,
    NEEDS,
    start,
    loss,
    figures,
    holds,
    decoded_by=medusa.decoded_by,
    rates=rates,
    model=lambda params: params["model"],
)
