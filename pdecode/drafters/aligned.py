"""Drafts copied from the context, with what the target itself would have said there.

The prefill and every later call predict each place of the text; the likeliest tokens
are kept, and stand beside the copied token as siblings (AASD, 2025, arXiv:2505.13204).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Draft, Drafter, Model, Prefix, Round, Sampling
from pdecode.drafters import ngram
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["Plan", "aligned"]


class Plan(NamedTuple):
    """Sizes of the drafter."""

    model: Model
    num_draft: int
    max_ngram: int
    num_beside: int


def aligned(model: Model, num_draft: int, max_ngram: int, num_beside: int) -> Drafter:
    """`ngram.prompt_lookup` whose nodes have `num_beside` siblings each.

    They are the target's likeliest tokens at the place that is copied; one that is the
    copied token is absent. Node d * (1 + num_beside) is the copied one of depth d + 1.
    Its state int32 [B, L, num_beside] holds what was predicted for each place.
    """
    plan = Plan(model, num_draft, max_ngram, num_beside)
    return Drafter(
        num_nodes=num_draft * (1 + num_beside),
        max_depth=num_draft,
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
        wants=(f"top:{num_beside}",),
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Array:
    del keys, prompt
    batch, length = prefix.tokens.shape
    beside = jnp.full((batch, length, plan.num_beside), -1, jnp.int32)
    if output is None:
        return beside
    found = vocab_head.statistics(
        plan.model.head(params["model"]),
        output.hidden,
        (f"top:{plan.num_beside}",),
        without_mask(plan.model, Sampling()),
    )
    place = jnp.arange(output.hidden.shape[1], dtype=jnp.int32)[None]
    seen = place < prefix.length[:, None] - 1
    return _written(beside, jnp.where(seen, place + 1, length), found.top_ids)


def _propose(plan: Plan, params, keys, beside: Array, prefix: Prefix):
    del params, keys
    num_draft, width = plan.num_draft, 1 + plan.num_beside
    copied, place = jax.vmap(
        lambda t, n: ngram.located(t, n, num_draft, plan.max_ngram)
    )(prefix.tokens, prefix.length)
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    others = jnp.take_along_axis(beside, last[..., None], 1)  # [B, D, num_beside]
    is_new = (copied >= 0)[..., None] & (others != copied[..., None])
    tokens = jnp.concatenate([copied[..., None], jnp.where(is_new, others, -1)], 2)
    nodes = np.arange(num_draft * width)
    parents = np.where(nodes < width, -1, (nodes // width - 1) * width)
    tokens = tokens.reshape(tokens.shape[0], -1)
    given = jnp.broadcast_to(jnp.asarray(parents, jnp.int32), tokens.shape)
    return Draft(tokens=tokens, parents=given), beside


def _observe(plan: Plan, params, keys, beside: Array, round: Round) -> Array:
    del params, keys
    # The root's lane and those accepted predict the places behind them.
    path = jnp.pad(round.path, ((0, 0), (1, 0)))
    nth = jnp.arange(path.shape[1], dtype=jnp.int32)[None]
    seen = nth <= round.num_accepted[:, None]
    place = round.prefix.length[:, None] + nth
    top = jnp.take_along_axis(round.prediction.top_ids, path[..., None], 1)
    top = top[..., : plan.num_beside]
    return _written(beside, jnp.where(seen, place, beside.shape[1]), top)


def _written(beside: Array, place: Array, top: Array) -> Array:
    row = jnp.arange(beside.shape[0])[:, None]
    return beside.at[row, place].set(top, mode="drop")
