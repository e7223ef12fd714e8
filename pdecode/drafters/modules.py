"""Modules in a row on the target's hidden states as the drafter (MTP).

Slot s of module k holds token s + k and the state at s - 1 of the module before it, of
the target before the first. Near the root these tokens are drafts, so the last 2 K
slots of every module are made anew in each round: behind the one before it a slot of
module k is final up to k before the root, and a round commits K + 1 tokens at most.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Draft,
    DraftCost,
    Drafter,
    DraftModules,
    Model,
    Prefix,
    Prompt,
    Query,
    Round,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.drafters import heads
from pdecode.sampling import without_mask

__all__ = ["ModuleState", "chain"]


class ModuleState(NamedTuple):
    """The slots before those made anew hold what is committed."""

    caches: tuple  # one a module
    features: Array  # [B, 2 K, E]  the target's before each slot that is made anew
    num_new: Array  # int32 [B]  of these slots, those behind the last root and its own


class Plan(NamedTuple):
    """What a drafter of modules is made of, checked once."""

    model: Model
    modules: DraftModules
    num_draft: int
    sampling: Sampling

    @property
    def width(self) -> int:
        return 2 * self.num_draft


def chain(model: Model, modules: DraftModules, num_draft: int) -> Drafter:
    """Drafts each module's best token as a chain; params are of the role "modules".

    A call of each module, of 2 * num_draft lanes. Nothing is drawn, so there is no q.
    ValueError if there are too few modules.
    """
    if not 1 <= num_draft <= modules.num_modules:
        raise ValueError(
            f"num_draft={num_draft} must lie in 1 .. {modules.num_modules}, how many "
            f"{modules.name} there are"
        )
    plan = Plan(model, modules, num_draft, without_mask(model, Sampling()))
    return Drafter(
        num_draft,
        num_draft,
        functools.partial(_init, plan),
        functools.partial(_propose, plan),
        functools.partial(_observe, plan),
        num_prefill_calls=num_draft,
    )


def _init(plan: Plan, params, keys, prompt: Prompt, prefix: Prefix, output):
    """The prompt's slots in the caches; those that hold drafts are made anew."""
    del keys
    modules, own, root = plan.modules, params["modules"], prompt.lengths - 1
    batch, length = prefix.tokens.shape
    room = caches.num_slots(length + plan.width)
    stored = [modules.init_cache(prompt, room) for _ in range(plan.num_draft)]
    if output is None:
        dtype = plan.model.head(params["model"]).weight.dtype
        before = jnp.zeros((batch, 1, modules.width), dtype)
    else:
        # tokens a b c: b stands beside the state at a, and nothing beside a
        before = jnp.pad(output.hidden, ((0, 0), (1, 0), (0, 0)))
        # The root's slot is of those that are made anew.
        states = before[:, :-1]
        slots = _slots(jnp.zeros_like(root), states.shape[1])
        for index in range(plan.num_draft):
            tokens = _tokens(prefix, root, slots + index, None)
            query = _lanes(tokens, slots, index, states)
            states, stored[index] = modules.apply(
                own, params["model"], index, query, stored[index]
            )
    first = _slots(jnp.maximum(root + 1 - plan.width, 0), plan.width)
    place = jnp.minimum(first, before.shape[1] - 1)
    features = jnp.take_along_axis(before, place[..., None], 1)
    return ModuleState(tuple(stored), features, jnp.ones_like(root))


def _observe(plan: Plan, params, keys, state: ModuleState, round: Round):
    """The target's states at the root and at each accepted node come behind."""
    del params, keys
    lanes = jnp.pad(round.path, ((0, 0), (1, 0)))  # the root's lane is 0
    fresh = jnp.take_along_axis(round.output.hidden, lanes[..., None], 1)
    every = jnp.concatenate([state.features, fresh.astype(state.features.dtype)], 1)
    root = (round.prefix.length - 1)[:, None]
    after = root[:, 0] + round.num_accepted + 1
    slots = _slots(jnp.maximum(after + 1 - plan.width, 0), plan.width)
    old = slots - jnp.maximum(root + 1 - plan.width, 0)
    new = plan.width + slots - root - 1
    place = jnp.minimum(jnp.where(slots <= root, old, new), every.shape[1] - 1)
    features = jnp.take_along_axis(every, place[..., None], 1)
    return state._replace(features=features, num_new=round.num_accepted + 1)


def _propose(plan: Plan, params, keys, state: ModuleState, prefix: Prefix):
    del keys
    modules, own, root = plan.modules, params["modules"], prefix.length - 1
    slots = _slots(jnp.maximum(root + 1 - plan.width, 0), plan.width)
    lane = (root - slots[:, 0])[:, None, None]
    states, stored, drafted = state.features, list(state.caches), None
    for index in range(plan.num_draft):
        tokens = _tokens(prefix, root, slots + index, drafted)
        query = _lanes(tokens, slots, index, states)
        states, stored[index] = modules.apply(
            own, params["model"], index, query, stored[index]
        )
        here = jnp.take_along_axis(states, lane, 1)
        hidden, head = modules.law(own, params["model"], index, here)
        best = heads.best_tokens(head, hidden, 1, plan.sampling)[:, 0]
        drafted = best if drafted is None else jnp.concatenate([drafted, best], 1)
    assert drafted is not None, "one module at least"
    count = plan.num_draft
    num_tokens = count * state.num_new + count * (count - 1) // 2
    computed = jnp.full_like(root, count * plan.width)
    draft = Draft(
        drafted,
        jnp.broadcast_to(jnp.arange(-1, count - 1), drafted.shape),
        cost=DraftCost(jnp.full_like(root, count), num_tokens, computed),
    )
    return draft, state._replace(caches=tuple(stored))


def _slots(first: Array, width: int) -> Array:
    return first[:, None] + jnp.arange(width, dtype=jnp.int32)[None]


def _tokens(prefix: Prefix, root: Array, place: Array, drafted: Array | None) -> Array:
    """Tokens at `place` [B, Q]: committed ones up to `root`, then drafts."""
    known = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    tokens = jnp.take_along_axis(prefix.tokens, known, 1)
    if drafted is None:
        return tokens
    nth = place - root[:, None] - 1
    ahead = jnp.clip(nth, 0, drafted.shape[1] - 1)
    ahead = jnp.maximum(jnp.take_along_axis(drafted, ahead, 1), 0)
    return jnp.where(nth < 0, tokens, ahead)


def _lanes(tokens: Array, slots: Array, index: int, states: Array) -> Query:
    """Stored lanes; they see slot 0, which has no state before it, only as itself."""
    # What stands behind the root is written over before it is seen.
    visible = Visibility(jnp.minimum(slots, 1), slots + 1)
    return Query(tokens, slots + index, SlotRun(slots[:, 0]), visible, states)
