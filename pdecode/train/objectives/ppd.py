"""PPD: prompt tokens that make a frozen target say several tokens ahead.

Chen et al., 2024, arXiv:2405.18628. Behind a random place of a row stand K prompt
tokens, of which the k-th sees the text up to there and the prompt tokens before it. The
loss is the divergence of its law from the target's own one behind the true token at its
position, times decay ** k / K. All that learns is the prompt tokens' embeddings, which
begin as those of a token of the text.

Deviations: the continuation is the text's, not what the target would write; several
places of a row in one pass, which do not see each other; no ensembles of prompt tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params
from pdecode.models.config import Config
from pdecode.train import evaluate, passes, probes
from pdecode.train.config import check_ranges
from pdecode.train.objective import Needs, Objective
from pdecode.train.passes import Pass

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Options:
    num_tokens: int = 3
    token: int = 0  # the id whose embedding they begin as
    decay: float = 0.8
    num_places: int = 16  # of a row, in one pass

    def __post_init__(self):
        ranges = {"num_tokens": (1, INF), "token": (0, INF), "decay": (0, 1)}
        check_ranges(self, ranges | {"num_places": (1, INF)})


NEEDS = Needs(
    attention=("causal",),
    predicts=("next",),
    why="prompt tokens guess what a causal target says next",
    frozen=("target",),
    can_start=False,
)


def start(config, key, given):
    del key, given
    own, model = config.options, config.model
    if own.token >= model.vocab_size:
        raise ValueError(
            f"token={own.token} must be an id of model.vocab_size={model.vocab_size}"
        )
    return {"change": jnp.zeros((own.num_tokens, model.width), jnp.float32)}


def noise(config):
    def apply(batch, key):
        shape = batch["tokens"].shape
        return {**batch, "places": probes.drawn(key, shape, config.options.num_places)}

    return apply


def laws(
    model: Config,
    params: Params,
    target: Params,
    tokens: Array,  # int32 [B, L]
    places: Array,  # int32 [B, M]
    own: Options,
    how: Pass | None = None,
) -> tuple[Array, Array]:
    """Nats [B, M, K, V] of every id at the prompt tokens behind places, and the law.

    The law is the target's at the true token that stands where the prompt token does;
    behind the row's end it has no meaning. Neither has a gradient to `target`.
    """
    how = passes.of_decoding(model) if how is None else how
    target = jax.lax.stop_gradient(target)
    return probes.taught(
        probes.of_pass(how, target), model, target, tokens, places, own.num_tokens,
        own.token, params["change"],
    )  # fmt: skip


def loss(config):
    how, given_ids, own = passes.of_run(config), config.given_ids, config.options

    def apply(params, frozen, batch, key, step):
        del key, step
        tokens, places = batch["tokens"], batch["places"]
        found = laws(config.model, params, frozen["target"], tokens, places, own, how)
        rate = own.decay ** jnp.arange(own.num_tokens) / own.num_tokens
        return probes.divergence(found, tokens, places, rate, given_ids)

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prompt_rows(model, own, given_ids, params, target, rows, scored):
    places = probes.even(rows.shape, own.num_places)
    found = laws(model, params, target, rows, places, own)
    return probes.sums(found, rows, places, scored, given_ids)


def figures(config, params, frozen, text, *, row_len, max_rows=None, put=jnp.asarray):
    """By prompt token, at places spread over the rows: bits of the text's token, and
    how often its best token is the target's."""
    rows = evaluate.rows(text, row_len, row_len - 1, max_rows)
    static = config.model, config.options, text.given_ids
    of_part = functools.partial(_prompt_rows, *static, params, frozen["target"])
    sums = evaluate.summed(rows, of_part, put)
    count = np.maximum(sums[2], 1)
    bits = evaluate.bits(sums[0]) / count
    return {
        "bits_per_token_by_prompt_token": bits.tolist(),
        "agreement_by_prompt_token": (sums[1] / count).tolist(),
    }


def holds(config):
    own = config.options
    sizes = {"num_tokens": own.num_tokens, "token": own.token}
    return {"kind": "prompt_tokens", **sizes}


def decoded_by(options: dict) -> tuple[str, dict]:
    del options
    return "ppd", {}


OBJECTIVE = Objective(
    Options, NEEDS, start, loss, figures, holds, noise=noise, decoded_by=decoded_by
)
