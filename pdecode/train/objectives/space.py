"""SPACE: a causal model that also guesses several tokens ahead at mask tokens.

Yi et al., 2024, arXiv:2402.11809 (semi-autoregressive fine-tuning). The rows are
trained as ever, and behind a few random places of each stand K masks, the k-th of which
sees the text up to there and the masks before it and has to say the token after the
next k. The loss is the mean cross entropy of both, a mask's times `mask_weight`. All of
the model learns, so what `methods.space` decodes without loss is the trained model.

Deviation: the places stand in the row's own pass, as lanes that nobody else sees, where
the authors cut half of their samples at one place.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdecode.contracts import Params
from pdecode.models.config import Config
from pdecode.train import evaluate, losses, passes, probes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Objective
from pdecode.train.objectives import autoregressive
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_masks: int = 5
    mask_weight: float = 1.0
    num_places: int = 8  # of a row

    def __post_init__(self):
        ranges = {"num_masks": (1, INF), "mask_weight": (0, INF)}
        check_ranges(self, ranges | {"num_places": (1, INF)})


def noise(config):
    def apply(batch, key):
        shape = batch["tokens"].shape
        return {**batch, "places": probes.drawn(key, shape, config.options.num_places)}

    return apply


def logits(
    model: Config,
    params: Params,
    tokens: Array,  # int32 [B, L]
    places: Array,  # int32 [B, M]
    own: Any,  # with num_masks
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Logits of each next token [B, L - 1, V], and of the masks behind places
    [B, M, K, V]."""
    how = passes.of_decoding(model) if how is None else how
    assert model.mask_id is not None, "the objective asks for one"
    run = probes.of_pass(how, params)
    hidden, masks = probes.behind(run, tokens, places, own.num_masks, model.mask_id)
    return (
        losses.logits_of(model, params, hidden[:, :-1]),
        losses.logits_of(model, params, masks),
    )


def scores(
    model: Config, params: Params, tokens: Array, places: Array, own,
    how: Pass, given_ids, may: Array | bool = True,
) -> tuple[Array, dict]:  # fmt: skip
    """Mean cross entropy of next tokens and masks, and `aux` as of an objective.

    Only the guesses that `may` (bool [B, L - 1, K], as `losses.ahead`) are scored.
    """
    crossed = optax.softmax_cross_entropy_with_integer_labels
    text, masks = logits(model, params, tokens, places, own, how)
    wanted, scored, stands = losses.ahead(tokens, own.num_masks, given_ids)
    size = scored.shape[1]
    nats = crossed(masks, probes.at(wanted, places))
    guessed = (nats, probes.at(scored & may, places))
    nats, scored = (probes.spread(each, places, size) for each in guessed)
    # Of each place the next token, and what its masks say of those behind.
    nats = jnp.concatenate([crossed(text, tokens[:, 1:])[..., None], nats], 2)
    is_text = losses.is_scored(tokens[:, 1:], given_ids)
    scored = jnp.concatenate([is_text[..., None], scored], 2)
    stands = jnp.concatenate([jnp.arange(1, size + 1)[:, None], stands], 1)
    rate = jnp.array([1.0] + own.num_masks * [own.mask_weight])
    counted = scored * rate[None, None]
    weight = counted.sum()
    value = (nats * counted).sum() / jnp.maximum(weight, 1.0)
    return value, {"weight": weight, "nats": nats, "scored": scored, "places": stands}


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del frozen, key, step
        tokens, places = batch["tokens"], batch["places"]
        return scores(config.model, params, tokens, places, own, how, given_ids)

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _mask_rows(model, own, given_ids, params, rows, scored):
    places = probes.even(rows.shape, own.num_places)
    masks = logits(model, params, rows, places, own)[1]
    wanted, counted, stands = losses.ahead(rows, own.num_masks, given_ids)
    counted &= scored[:, jnp.minimum(stands, rows.shape[1] - 1)]
    counted = probes.at(counted, places)
    hits = jnp.argmax(masks, -1) == probes.at(wanted, places)
    return jnp.stack([(counted & hits).sum((0, 1)), counted.sum((0, 1))])


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """Bits of the next token, as of any causal model, and how often each mask's best
    token is the text's, at places spread over the rows."""
    found = autoregressive.figures(
        config, params, frozen, text, row_len=row_len, max_rows=max_rows, put=put
    )
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    sums = np.zeros((2, config.options.num_masks))
    for part in evaluate.parts(rows):
        own, given_ids = config.options, text.given_ids
        sums += np.asarray(
            _mask_rows(config.model, own, given_ids, params, *map(put, part))
        )
    return found | {"accuracy_by_mask": (sums[0] / np.maximum(sums[1], 1)).tolist()}


def decoded_as(options: dict) -> tuple[str, dict]:
    return "space", {"num_draft": options["num_masks"]}


OBJECTIVE = Objective(
    Options, autoregressive.NEEDS._replace(mask=True), autoregressive.start, loss,
    figures, autoregressive.holds, noise=noise, decoded_as=decoded_as,
)  # fmt: skip
