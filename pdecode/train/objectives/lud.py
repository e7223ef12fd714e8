"""LUD: a causal model that says a lexical unit at a time.

Sun et al., 2024, arXiv:2405.15208. A unit is a token and those behind it that a frozen
model, the one that training begins with, gives at least `unit_threshold` each. The rows
are trained as ever, and behind a few random places of each stand K masks, which have to
say the tokens behind the next one as far as its unit goes. `methods.lud` decodes the
result, with nothing verified.

Deviations: the masks stand in the row's own pass, as lanes that nobody else sees; all
places begin a unit, so what is learnt of a unit's middle is how it goes on.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.models.config import Config
from pdecode.train import losses, passes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import autoregressive, space
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_masks: int = 4
    mask_weight: float = 1.0
    num_places: int = 8  # of a row
    unit_threshold: float = 0.9

    def __post_init__(self):
        ranges = {"num_masks": (1, INF), "mask_weight": (0, INF)}
        ranges |= {"num_places": (1, INF), "unit_threshold": (0, 1)}
        check_ranges(self, ranges)


def in_unit(
    model: Config, target: Params, tokens: Array, own: Options, how: Pass | None = None
) -> Array:
    """bool [B, L - 1, K]: the guesses of `losses.ahead` in the next token's unit."""
    target = jax.lax.stop_gradient(target)
    nats, _ = losses.next_token_loss(model, target, tokens, how)
    sure = jnp.pad(jnp.exp(-nats) >= own.unit_threshold, ((0, 0), (1, 0)))
    _, _, stands = losses.ahead(tokens, own.num_masks, ())
    ahead = sure[:, jnp.minimum(stands, tokens.shape[1] - 1)]
    return jnp.cumprod(ahead, 2) > 0


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options
    model = config.model

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, places = batch["tokens"], batch["places"]
        may = in_unit(model, frozen["target"], tokens, own, how)
        return space.scores(model, params, tokens, places, own, how, given_ids, may)

    return apply


def decoded_as(options: dict) -> tuple[str, dict]:
    return "lud", {"num_draft": options["num_masks"]}


OBJECTIVE = Objective(
    Options,
    autoregressive.NEEDS._replace(mask=True, frozen=("target",)),
    autoregressive.start, loss, space.figures, autoregressive.holds, noise=space.noise,
    decoded_as=decoded_as,
)  # fmt: skip
