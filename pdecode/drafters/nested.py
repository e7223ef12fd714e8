"""A draft model of sub-models, each draft by the first of them that is sure of it.

S2D (Kavehzadeh et al., 2024, arXiv:2407.01955). A token is read by the first layers;
where the probability of their best token is no more than a threshold, the layers up to
the next exit go on from there. The caches of later layers are filled late: a token that
an earlier exit answered leaves its stream behind, and all that wait go through together
when their row asks a later sub-model, perhaps rounds afterwards. No layer reads a
committed token twice.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import (
    Cache,
    DraftCost,
    Drafter,
    Model,
    Prefix,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.drafters import ignore, ngram
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["NestedState", "Plan", "nested"]


class NestedState(NamedTuple):
    """What the sub-models have stored."""

    cache: Cache
    # The first slots that each sub-model has stored: of committed tokens, or of drafts
    # that may become so.
    written: tuple[Array, ...]  # int32 [B] each


class Plan(NamedTuple):
    """What a nested drafter is made of."""

    exits: tuple[Model, ...]
    num_draft: int
    threshold: Any
    sampling: Sampling


class Asked(NamedTuple):
    """One draft on its way through the sub-models."""

    cache: Cache
    written: Array  # int32 [B]  of the sub-model that is asked
    token: Array  # int32 [B]
    log_prob: Array  # float32 [B]  of the best token
    cost: DraftCost


def nested(model: Model, num_draft: int, threshold: Any, sampling: Sampling) -> Drafter:
    """Chains of `num_draft` tokens by `model.exits`, whose params are the "drafter"'s.

    Tokens are drawn under the target's own noise, at temperature 0 the best ones, for
    `accept.match`. The last sub-model answers whatever it thinks of it: a threshold of
    0 drafts with the first, one of 1 with the whole model. Each sub-model's call
    counts as a call, and its lanes as tokens, though it is a part of the model.

    Raises ValueError for a model without exits, and for an empty chain.
    """
    if not model.exits:
        raise ValueError(
            f"{model.name} has no exits: train it with objective=sorted_exits and "
            "model.exits, or draft with speculative_sampling"
        )
    if num_draft < 1:
        raise ValueError(f"{num_draft=} must be at least 1")
    plan = Plan(model.exits, num_draft, threshold, without_mask(model, sampling))
    return Drafter(
        num_draft,
        num_draft,
        functools.partial(init, plan),
        functools.partial(propose, plan),
        ignore,
        num_prefill_calls=len(model.exits),
    )


def init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> NestedState:
    """The prompt but its last token, through all layers."""
    del keys, output
    slots = prefix.tokens.shape[1] + 2 * plan.num_draft + 2
    cache = plan.exits[0].init_cache(prompt, caches.num_slots(slots))
    for exit in plan.exits:
        _, cache = prompts.prefill(exit, params["drafter"], prompt, cache, drop=1)
    return NestedState(cache, (prompt.lengths - 1,) * len(plan.exits))


def propose(plan: Plan, params, keys, state: NestedState, prefix: Prefix):
    """Drafts a chain, token by token."""
    root = prefix.length - 1
    none = jnp.zeros_like(root)
    written = tuple(jnp.minimum(each, root) for each in state.written)
    room = jnp.zeros((root.shape[0], plan.num_draft), jnp.int32)
    text = jnp.concatenate([prefix.tokens, room], 1)
    rows = jnp.arange(root.shape[0])
    cost = DraftCost(none, none, none)
    # What is not stored yet of the prefix is its root and perhaps the last draft.
    token, asked = answer(
        plan, params, keys, text, root, (state.cache, written, cost), 2
    )
    text = text.at[rows, root + 1].set(token, mode="drop")

    def deepen(level, carry):
        text, asked = carry
        token, asked = answer(plan, params, keys, text, root + level, asked, 1)
        return text.at[rows, root + level + 1].set(token, mode="drop"), asked

    text, (cache, written, cost) = jax.lax.fori_loop(
        1, plan.num_draft, deepen, (text, asked)
    )
    place = prefix.length[:, None] + jnp.arange(plan.num_draft)[None]
    tokens = jnp.take_along_axis(text, place, 1)
    return ngram.chain(tokens)._replace(cost=cost), NestedState(cache, written)


def answer(plan: Plan, params, keys, text: Array, place: Array, state, width: int):
    """The token int32 [B] behind `place` [B], and (cache, written, cost) after it.

    A sub-model is called only while rows need it; the first in calls of `width` lanes.
    """
    cache, written, cost = state
    needed = jnp.ones(place.shape, bool)
    token, stored = jnp.zeros_like(place), []
    for nth in range(len(plan.exits)):
        lanes = width if nth == 0 else plan.num_draft + 1
        blank = Asked(
            cache, written[nth], token, jnp.zeros(place.shape, jnp.float32), cost
        )
        asked = jax.lax.while_loop(
            lambda one, needed=needed: (needed & (one.written <= place)).any(),
            functools.partial(
                call, plan, params, keys, text, place, nth, lanes, needed
            ),
            blank,
        )
        cache, cost = asked.cache, asked.cost
        token = jnp.where(needed, asked.token, token)
        stored.append(asked.written)
        needed &= jnp.exp(asked.log_prob) <= plan.threshold
    return token, (cache, tuple(stored), cost)


def call(
    plan: Plan, params, keys, text, place, nth: int, width: int, needed, asked: Asked
) -> Asked:
    """One call of a sub-model over what it has not stored yet, up to `place`."""
    exit, own = plan.exits[nth], params["drafter"]
    moves = needed & (asked.written <= place)
    lane = asked.written[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    last = jnp.minimum(lane, text.shape[1] - 1)
    query = Query(
        tokens=jnp.take_along_axis(text, last, 1),
        positions=lane,
        slots=SlotRun(asked.written, moves[:, None] & (lane <= place[:, None])),
        visible=Visibility(start=jnp.zeros_like(lane), stop=lane + 1),
    )
    output, cache = exit.apply(own, query, asked.cache)
    at = jnp.clip(place - asked.written, 0, width - 1)[:, None, None]
    hidden = jnp.take_along_axis(output.hidden, at, 1)
    noise = functools.partial(rng.noise, keys, rng.TARGET, place[:, None] + 1)
    found = vocab_head.statistics(
        exit.head(own), hidden, ("token", "max_log_prob"), plan.sampling, noise
    )
    count = jnp.minimum(place + 1 - asked.written, width)
    count = jnp.where(moves, count, 0)
    # A row that this call brought to `place` has its answer.
    return Asked(
        cache,
        asked.written + count,
        jnp.where(moves, found.token[:, 0], asked.token),
        jnp.where(moves, found.max_log_prob[:, 0], asked.log_prob),
        DraftCost(
            asked.cost.num_calls + moves,
            asked.cost.num_tokens + count,
            asked.cost.num_tokens_computed + width,
        ),
    )
