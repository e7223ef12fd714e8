"""A draft model that is itself decoded by drafts: fewer calls, the same chain."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import (
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

__all__ = ["Plan", "Written", "cascaded"]


class Plan(NamedTuple):
    """What the drafter is made of."""

    model: Model
    sampling: Sampling
    num_draft: int
    num_copied: int
    max_ngram: int


class Written(NamedTuple):
    """Carry of the loop over the draft model's calls."""

    tokens: Array  # int32 [B, L + N + M + 1]  the text and the chain behind it
    length: Array  # int32 [B]
    cache: object
    num_calls: Array  # int32 [B]


def cascaded(
    model: Model, sampling: Sampling, num_draft: int, num_copied: int, max_ngram: int
) -> Drafter:
    """A chain of `num_draft` under the target's noise, as `causal` draws "coupled".

    Each call of `model` verifies what `ngram.prompt_lookup` finds in the text and the
    chain so far, so that it gives up to 1 + `num_copied` tokens of the chain. Params
    are those of the role "drafter".
    """
    plan = Plan(model, without_mask(model, sampling), num_draft, num_copied, max_ngram)
    return Drafter(
        num_draft, num_draft, functools.partial(_init, plan),
        functools.partial(_propose, plan), ignore, num_prefill_calls=1,
    )  # fmt: skip


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output):
    del keys, output
    room = plan.num_draft + 2 * plan.num_copied + 2
    num_slots = caches.num_slots(prefix.tokens.shape[1] + room)
    cache = plan.model.init_cache(prompt, num_slots)
    _, cache = prompts.prefill(plan.model, params["drafter"], prompt, cache, drop=1)
    return cache


def _propose(plan: Plan, params, keys, cache, prefix: Prefix):
    # Besides the root two tokens lack at most: the last of the chain, and the next one.
    own, root = params["drafter"], prefix.length - 1
    beyond = plan.num_draft + plan.num_copied + 1
    place = jnp.arange(prefix.tokens.shape[1])[None]
    text = jnp.where(place < prefix.length[:, None], prefix.tokens, 0)
    begun = Written(
        tokens=jnp.pad(text, ((0, 0), (0, beyond))),
        length=prefix.length,
        cache=cache,
        num_calls=jnp.zeros_like(root),
    )
    goal = prefix.length + plan.num_draft
    call = functools.partial(_call, plan, own, keys, goal)
    ended = jax.lax.while_loop(lambda w: (w.length < goal).any(), call, begun)
    at = prefix.length[:, None] + jnp.arange(plan.num_draft, dtype=jnp.int32)[None]
    draft = ngram.chain(jnp.take_along_axis(ended.tokens, at, 1))
    width = plan.num_copied + 2
    most = ended.num_calls.max()
    cost = DraftCost(
        num_calls=ended.num_calls,
        num_tokens=ended.num_calls * width,
        num_tokens_computed=jnp.broadcast_to(most * width, root.shape),
    )
    return draft._replace(cost=cost), ended.cache


def _call(plan: Plan, own, keys, goal: Array, at: Written) -> Written:
    """One call: what is not stored of the chain, and what is copied behind it."""
    size = at.tokens.shape[1]
    copied = jax.vmap(lambda t, n: ngram.lookup(t, n, plan.num_copied, plan.max_ngram))(
        at.tokens, at.length
    )
    # Lanes: up to two tokens that lack, the last of which is the chain's end, then the
    # copies; with one that lacks, the first lane stores the token before it again.
    first = at.length - 2
    is_short = first < 0
    first = jnp.maximum(first, 0)
    lane = jnp.arange(plan.num_copied + 2, dtype=jnp.int32)[None]
    place = first[:, None] + lane
    row = jnp.arange(size)[None]
    nth = row - at.length[:, None]
    is_copy = (nth >= 0) & (nth < plan.num_copied)
    spread = jnp.take_along_axis(copied, jnp.clip(nth, 0, plan.num_copied - 1), 1)
    proposed = jnp.where(is_copy, spread, at.tokens)
    seen = jnp.take_along_axis(proposed, place, 1)
    query = Query(
        tokens=jnp.maximum(seen, 0),
        positions=place,
        slots=SlotRun(first),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )
    output, cache = plan.model.apply(own, query, at.cache)
    places = functools.partial(rng.noise, keys, rng.TARGET, place + 1)
    wanted = vocab_head.statistics(
        plan.model.head(own), output.hidden, ("token",), plan.sampling, places
    ).token
    # What is wanted behind the chain's end, and behind each copy.
    end = jnp.where(is_short, 0, 1)[:, None]
    lanes = end + jnp.arange(plan.num_copied + 1, dtype=jnp.int32)[None]
    wanted = jnp.take_along_axis(wanted, lanes, 1)
    hits = jnp.cumprod((copied >= 0) & (copied == wanted[:, :-1]), 1).sum(1)
    gained = jnp.where(at.length < goal, hits + 1, 0).astype(jnp.int32)
    is_new = (nth >= 0) & (nth < gained[:, None])
    told = jnp.take_along_axis(wanted, jnp.clip(nth, 0, plan.num_copied), 1)
    return Written(
        tokens=jnp.where(is_new, told, at.tokens),
        length=at.length + gained,
        cache=cache,
        num_calls=at.num_calls + (gained > 0),
    )
