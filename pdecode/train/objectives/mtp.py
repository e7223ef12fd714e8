"""Multi-token prediction on a frozen target: modules in a row, one token further each.

DeepSeek-AI, 2024, arXiv:2412.19437. Module k reads the state of the module before it
and the true token k + 1 further on; the loss is the weighted mean of the modules' cross
entropies of the text's tokens, all weights equal (step_decay=1) or falling (FastMTP,
arXiv:2509.18362, whose one module serves every step: shared). The papers train the
target too; here only the modules learn, and target, embedding and head stay.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params, Query, Visibility
from pdecode.models import draft_modules
from pdecode.models.config import Config
from pdecode.train import guesses, losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_modules: int = 1
    shared: bool = False
    step_decay: float = 1.0

    def __post_init__(self):
        check_ranges(self, {"num_modules": (1, INF), "step_decay": (0, 1)})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="modules continue the states of a causal target",
    frozen=("target",),
    can_start=False,
)


def start(config, key, given):
    del given
    own = config.options
    return draft_modules.init(config.model, key, own.num_modules, own.shared)


def guessed(
    model: Config,
    own: Options,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Nats [B, L - 1, K, V] of every id by each module, and the target's law of them.

    Behind the row's end there is no meaning.
    """
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    hidden = jax.lax.stop_gradient(passes.hidden(how, target, tokens))
    modules = draft_modules.make_modules(model, own.num_modules, own.shared)
    states = hidden[:, :-1]
    place = jnp.arange(tokens.shape[1] - 1, dtype=jnp.int32)
    place = jnp.broadcast_to(place, states.shape[:2])
    nats = []
    for index in range(own.num_modules):
        # tokens a b c d: at a module 0 reads b and is of c, module 1 reads c
        read = guesses.behind(tokens, 1 + index)
        seen = Visibility(jnp.zeros_like(place), place + 1)
        query = Query(read, 1 + index + place, None, seen, extra=states)
        states, _ = modules.apply(params, target, index, query, None)
        found, head = modules.law(params, target, index, states)
        nats.append(-jax.nn.log_softmax(losses.logits_under(model, head, found)))
    return jnp.stack(nats, 2), guesses.laws(model, target, hidden, own.num_modules)


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens = batch["tokens"]
        found = guessed(config.model, own, params, frozen["target"], tokens, how)
        rate = own.step_decay ** jnp.arange(own.num_modules)
        return guesses.crossed(found, tokens, given_ids, rate / rate.sum())

    return apply


def figures(config, params, frozen, text, **sizes):
    """By module, behind the text's own tokens: bits a token, and how often its best
    token is the target's."""
    bits, right = guesses.rates(
        guessed, guesses.drafted, config, params, frozen, text, **sizes
    )
    return {"bits_per_token_by_module": bits, "agreement_by_module": right}


def holds(config):
    own = config.options
    sizes = {"num_modules": own.num_modules, "shared": own.shared}
    return {"kind": "draft_modules", **sizes}


def decoded_by(options: dict) -> tuple[str, dict]:
    return "mtp", {"num_draft": options["num_modules"]}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, decoded_by=decoded_by
)
