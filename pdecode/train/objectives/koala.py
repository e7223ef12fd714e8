"""KOALA: deeper Medusa heads and a discriminator of their laws (arXiv:2408.08146).

Zhang et al., 2024. Heads of several residual blocks learn the tokens that they predict,
and to be taken for the target: a discriminator reads a law and says whether the target
or a head made it. The heads' loss is their cross entropy, of the text's token or under
the target's law there, and adversarial_weight times -log of what the discriminator
gives them; the discriminator's is that of telling the two apart. Of head k (from one)
both count head_decay ** k times. No gradient passes from one's loss to the other.

The discriminator is two layers on the probabilities; the paper's own is not known here,
nor its weight. Both learn in each step, where the paper alternates. It stays in the
result, where no decoder reads it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models import medusa_heads
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
    num_blocks: int = 2
    head_decay: float = 0.8
    labels: Literal["text", "target"] = "target"
    adversarial_weight: float = 0.1
    discriminator_width: int = 128

    def __post_init__(self):
        ranges = {"num_heads": (1, INF), "num_blocks": (1, INF), "head_decay": (0, 1)}
        ranges |= {"adversarial_weight": (0, INF), "discriminator_width": (1, INF)}
        check_ranges(self, ranges)
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r} must be one of {LABELS}")


NEEDS = guesses.OF_HEADS


def start(config, key, given):
    del given
    own, model = config.options, config.model
    size, width = model.vocab_size, own.discriminator_width
    first, second = jax.random.split(key)
    normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    discriminator = {
        "inner": {
            "kernel": normal(first, (size, width), jnp.float32),
            "bias": jnp.zeros(width, jnp.float32),
        },
        "outer": {
            "kernel": normal(second, (width, 1), jnp.float32),
            "bias": jnp.zeros(1, jnp.float32),
        },
    }
    heads = medusa_heads.init(own.num_heads, own.num_blocks, model.width, size)
    return {**heads, "discriminator": discriminator}


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
    heads = medusa_heads.make_heads(own.num_heads, own.num_blocks)
    nats = guesses.of_heads(model, heads, params, target, hidden, tokens)
    return nats, guesses.laws(model, target, hidden, own.num_heads)


def told(discriminator: Params, law: Array) -> Array:
    """The logit [...] that a law [..., V] is the target's."""
    first, second = discriminator["inner"], discriminator["outer"]
    ones = (1,) * (law.ndim - 1)
    # Probabilities are about 1 / V: their roots, whose squares sum to one, are not.
    inner = jnp.sqrt(law + 1e-9) @ first["kernel"] + first["bias"].reshape(*ones, -1)
    found = jax.nn.silu(inner) @ second["kernel"] + second["bias"].reshape(*ones, -1)
    return found[..., 0]


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options
    still = jax.lax.stop_gradient

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, judge = batch["tokens"], params["discriminator"]
        nats, law = guessed(config.model, own, params, frozen["target"], tokens, how)
        rate = own.head_decay ** jnp.arange(1, own.num_heads + 1)
        value, aux = guesses.crossed((nats, law), tokens, given_ids, rate, own.labels)
        surprise, made = jax.nn.softplus, jnp.exp(-nats)  # -log sigmoid(-x)
        fools = surprise(-told(still(judge), made))
        tells = surprise(-told(judge, law)) + surprise(told(judge, still(made)))
        extra, _ = losses.weighted(
            own.adversarial_weight * fools + tells, aux["scored"], rate
        )
        return value + extra, aux

    return apply


def holds(config):
    own = config.options
    sizes = {"num_heads": own.num_heads, "num_blocks": own.num_blocks}
    return {"kind": "medusa_heads", **sizes}


def figures(config, params, frozen, text, **sizes):
    """By head, behind the text's own tokens: bits a token, and how often its best token
    is the target's."""
    bits, right = guesses.rates(
        guessed, guesses.drafted, config, params, frozen, text, **sizes
    )
    return {"bits_per_token_by_head": bits, "agreement_by_head": right}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=medusa.decoded_by
)
