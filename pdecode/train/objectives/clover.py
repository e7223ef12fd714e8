"""Clover: heads on a frozen target that pass on what was drafted (arXiv:2405.00263).

Xiao et al., 2024; losses as in Clover-2 (arXiv:2408.00264). Head i (from zero) has read
the true tokens up to its own. The loss is smooth L1 from its state to the target's at
that token, times feature_weight, and the cross entropy of its law under the target's,
times law_weight; of head i times head_decay ** i. The heads learn, their gates and the
augmenting block; target, head and embedding stay. With start_from the frozen target
the block's layers begin as the target's last one, as the paper has it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models import clover_heads
from pdecode.models.config import Config
from pdecode.train import guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int = 5
    num_layers: int = 2
    head_decay: float = 0.7
    feature_weight: float = 10.0
    law_weight: float = 1.0

    def __post_init__(self):
        sizes = {"num_heads": (1, INF), "num_layers": (1, INF), "head_decay": (0, 1)}
        check_ranges(self, sizes | {"feature_weight": (0, INF), "law_weight": (0, INF)})
        if not self.feature_weight and not self.law_weight:
            raise ValueError("feature_weight=0 and law_weight=0: nothing is learnt")


NEEDS = guesses.OF_HEADS._replace(can_start=True)


def start(config, key, given):
    """ValueError for a target whose last layer is no layer of the heads'."""
    for field in ("experts", "post_norms"):
        if given is not None and getattr(config.model, field):
            raise ValueError(
                f"model.{field}={getattr(config.model, field)}: the layers of the "
                "augmenting block are dense and have no post-norms, so none begins as "
                "this target's last one; leave start_from out, and they begin as no "
                "change"
            )
    return clover_heads.init(config.model, key, config.options.num_layers, given)


def states_of(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, Array, Array]:
    """The heads' states [B, L - 1, K, E], nats [B, L - 1, K, V] of every id by them,
    and the target's states [B, L, E]."""
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    heads = clover_heads.make_heads(model, own.num_heads, own.num_layers)
    states, nats = guesses.of_chained(model, heads, params, target, hidden, tokens)
    return states, nats, hidden


def guessed(model, own, params, target, tokens, how=None) -> tuple[Array, Array]:
    """Nats [B, L - 1, K, V] of every id by each head, and the target's law of them."""
    _, nats, hidden = states_of(model, own, params, target, tokens, how)
    target = jax.lax.stop_gradient(target)
    return nats, guesses.laws(model, target, hidden, own.num_heads)


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options
    model = config.model

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, target = batch["tokens"], jax.lax.stop_gradient(frozen["target"])
        states, nats, hidden = states_of(model, own, params, target, tokens, how)
        rate = own.head_decay ** jnp.arange(own.num_heads)
        law = guesses.laws(model, target, hidden, own.num_heads)
        value, aux = guesses.crossed((nats, law), tokens, given_ids, rate, "target")
        count = range(own.num_heads)
        true = jnp.stack([guesses.behind(hidden, 1 + index) for index in count], 2)
        far = optax.huber_loss(states.astype(jnp.float32), true.astype(jnp.float32))
        away, _ = losses.weighted(far.mean(-1), aux["scored"], rate)
        return own.law_weight * value + own.feature_weight * away, aux

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
    sizes = {"num_heads": own.num_heads, "num_layers": own.num_layers}
    return {"kind": "clover_heads", **sizes}


def decoded_by(options: dict) -> tuple[str, dict]:
    widths = [4, 2] + [1] * options["num_heads"]
    return "clover", {"branching": tuple(widths[: options["num_heads"]])}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
