"""Chains as long as they are worth, chosen row by row before each round.

A round of k drafts is worth the tokens that it is expected to give, told from how often
this row's drafts were accepted at each depth, over what it costs: a target call of
k + 1 lanes and the drafter's k calls (the speed model of Leviathan et al., 2022,
arXiv:2211.17192, with measured rates and costs in place of constants). The length is a
function of earlier rounds alone, so what is emitted keeps its law. Looking at what was
drawn before cutting would not.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, rng
from pdecode.contracts import (
    Draft,
    DraftCost,
    Drafter,
    Lens,
    Model,
    Prefix,
    Round,
    Sampling,
)
from pdecode.drafters import causal, ngram
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import choose, without_mask

__all__ = [
    "COSTS",
    "KEEP",
    "SHARED",
    "WIDTHS",
    "Pace",
    "Plan",
    "Prices",
    "chosen",
    "cost_of",
    "cut",
    "draft_model",
    "expected",
    "lengths",
    "paced",
    "rates",
    "recorded",
    "started",
]

WIDTHS = (1, 2, 4, 8, 16, 32)  # lanes of the calls whose costs are given
# Of a call over that of a call of one lane: one H200, 1.3 million parameters.
COSTS = (1.0, 1.0, 1.0, 1.0, 1.16, 1.61)

# What a round before counts of the one after it: if that drafted, and if it did not.
# Rows that stopped drafting come back to what they began with, and try again, seldom.
KEEP, REST = 0.98, 0.99
# Before anything is known a first draft is accepted with FIRST and one behind another
# with BEHIND, as if seen TRIALS times. The two have nothing to do with each other: a
# copy is right or wrong at its first token, so what first drafts teach would keep a row
# from ever learning how well it goes on. Too low, and what pays is never tried.
FIRST, BEHIND, TRIALS = 0.85, 0.8, 2.0
SHARED = 8.0  # trials that the rate at all later depths counts at each of them


class Prices(NamedTuple):
    """What calls cost, in any one unit."""

    call: Any  # float32 [6]  of the target, by its lanes (WIDTHS)
    draft: Any = 0.0  # of the drafter's own model


class Pace(NamedTuple):
    """A row's record, and the state of the drafter that it paces."""

    inner: Any
    kept: Array  # float32 [B, N]  drafts accepted at each depth, fading
    tried: Array  # float32 [B, N]
    seen: Array  # int32 [B]  tokens committed before the last round


def lengths(longest: int) -> tuple[int, ...]:
    """0, the powers of two and `longest`: each is a program of the target's call."""
    if longest + 1 > WIDTHS[-1]:
        raise ValueError(
            f"a draft of {longest} nodes must have at most {WIDTHS[-1] - 1} for "
            f"draft_length='auto': costs are given up to {WIDTHS[-1]} lanes; "
            "lower num_draft, num_nodes, widths or branching, whichever the method has"
        )
    return tuple(sorted({0, longest, *(2**i for i in range(longest.bit_length()))}))


def paced(drafter: Drafter, choices: tuple[int, ...], prices: Prices) -> Drafter:
    """`drafter`, a chain that costs nothing, cut to what is worth its lanes.

    Give `choices` to the family as `call_sizes`. Raises ValueError for a tree.
    """
    _check(choices, drafter.max_depth, drafter.num_nodes)

    def init(params, keys, prompt, prefix: Prefix, output):
        inner = drafter.init(params, keys, prompt, prefix, output)
        return started(inner, prefix, drafter.num_nodes)

    def propose(params, keys, pace: Pace, prefix: Prefix):
        draft, inner = drafter.propose(params, keys, pace.inner, prefix)
        length = chosen(pace, prefix, choices, prices)
        return cut(draft, length), pace._replace(inner=inner, seen=prefix.length)

    def observe(params, keys, pace: Pace, round: Round):
        inner = drafter.observe(params, keys, pace.inner, round)
        return recorded(pace._replace(inner=inner), round)

    return drafter._replace(init=init, propose=propose, observe=observe)


def started(inner: Any, prefix: Prefix, num_nodes: int) -> Pace:
    """A record of nothing."""
    blank = jnp.zeros((prefix.length.shape[0], num_nodes), jnp.float32)
    return Pace(inner, blank, blank, jnp.zeros_like(prefix.length))


def chosen(
    pace: Pace, prefix: Prefix, choices: tuple[int, ...], prices: Prices
) -> Array:
    """The length int32 [B] of `choices` that gives most tokens for its price.

    What would lie behind the row's end is worth nothing. A row that stands still, which
    is done, drafts nothing.
    """
    sizes = jnp.asarray(choices, jnp.int32)
    worth = expected(pace, prefix.end - prefix.length)
    speed = worth[:, sizes] / cost_of(choices, prices)[None]
    best = sizes[jnp.argmax(speed, 1)]  # of equals the shortest
    return jnp.where(prefix.length > pace.seen, best, 0)


def expected(pace: Pace, room: Array) -> Array:
    """Tokens float32 [B, 1 + N] of a round of 0 to N drafts, `room` [B] at most."""
    found = rates(pace.kept, pace.tried)
    reached = jnp.concatenate([jnp.ones_like(found[:, :1]), jnp.cumprod(found, 1)], 1)
    nth = jnp.arange(reached.shape[1])[None]
    return jnp.cumsum(jnp.where(nth < room[:, None], reached, 0), 1)


def rates(kept: Array, tried: Array, share: Any = 1.0) -> Array:
    """How often a draft is accepted at each depth, of float32 counts [B, N, ...].

    Before anything is known that is `share` of FIRST and BEHIND.
    """
    first = (kept[:, :1] + TRIALS * FIRST * share) / (tried[:, :1] + TRIALS)
    behind = kept[:, 1:].sum(1, keepdims=True) + TRIALS * BEHIND * share
    behind /= tried[:, 1:].sum(1, keepdims=True) + TRIALS
    later = (kept[:, 1:] + SHARED * behind) / (tried[:, 1:] + SHARED)
    return jnp.concatenate([first, later], 1)


def cost_of(choices: tuple[int, ...], prices: Prices) -> Array:
    """float32 [K]: a round of each length; between WIDTHS, straight in logarithms."""
    lanes = np.log(np.array(choices) + 1)
    call = jnp.asarray(prices.call, jnp.float32)
    # Zero is a cost that may be given.
    call = jnp.exp(jnp.interp(lanes, np.log(WIDTHS), jnp.log(jnp.maximum(call, 1e-9))))
    return call + jnp.asarray(choices, jnp.float32) * prices.draft


def recorded(pace: Pace, round: Round) -> Pace:
    """The record with one more round of a chain."""
    nth = jnp.arange(pace.kept.shape[1])[None]
    was_kept = nth < round.num_accepted[:, None]
    # What stands behind the first one refused was not tried.
    was_tried = (nth <= round.num_accepted[:, None]) & (round.draft.tokens >= 0)
    fade = jnp.where(was_tried.any(1, keepdims=True), KEEP, REST)
    return pace._replace(
        kept=fade * pace.kept + was_kept, tried=fade * pace.tried + was_tried
    )


def cut(draft: Draft, length: Array) -> Draft:
    """A chain without the nodes behind `length` [B]; their law is none at all."""
    is_kept = jnp.arange(draft.tokens.shape[1])[None] < length[:, None]
    q = None if draft.q is None else jnp.where(is_kept[..., None], draft.q, 0)
    return draft._replace(tokens=jnp.where(is_kept, draft.tokens, -1), q=q)


class Plan(NamedTuple):
    """What a paced draft model is made of."""

    model: Model
    choices: tuple[int, ...]
    prices: Prices
    sampling: Sampling
    draws: str
    lenses: tuple[Lens, ...]
    num_behind: int  # tokens that one call makes up for

    @property
    def num_nodes(self) -> int:
        return self.choices[-1]


def draft_model(
    model: Model,
    choices: tuple[int, ...],
    prices: Prices,
    sampling: Sampling,
    *,
    draws: str = "with_replacement",
    lenses: Sequence[Lens] = (),
) -> Drafter:
    """`causal.draft_model` of a chain that drafts only what is worth its calls.

    `draws` is "with_replacement" or "coupled", and each token is the one that a chain
    of fixed length would have there. The batch makes as many calls as its longest row
    needs, and none where no row drafts; what was committed meanwhile is stored when one
    drafts again. Params are those of the role "drafter".
    """
    if draws not in ("with_replacement", "coupled"):
        raise ValueError(f"{draws=} must be 'with_replacement' or 'coupled'")
    longest = max(choices, default=0)
    _check(choices, longest, longest)
    causal.check_lenses(lenses)
    plan = Plan(
        model, choices, prices, without_mask(model, sampling), draws, tuple(lenses),
        num_behind=longest + 1,
    )  # fmt: skip
    return Drafter(
        plan.num_nodes,
        plan.num_nodes,
        functools.partial(_init, plan),
        functools.partial(_propose, plan),
        lambda params, keys, pace, round: recorded(pace, round),
        num_prefill_calls=1,
        is_iid=True,
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Pace:
    del keys, output
    room = plan.num_behind + plan.num_nodes
    num_slots = caches.num_slots(prefix.tokens.shape[1] + room)
    cache = plan.model.init_cache(prompt, num_slots)
    _, cache = prompts.prefill(plan.model, params["drafter"], prompt, cache, drop=1)
    inner = causal.CausalState(cache, prompt.lengths - 1)
    return started(inner, prefix, plan.num_nodes)


def _propose(plan: Plan, params, keys, pace: Pace, prefix: Prefix):
    own, model = params["drafter"], plan.model
    length = chosen(pace, prefix, plan.choices, plan.prices)
    longest, root = length.max(), prefix.length - 1
    missing = prefix.length - jnp.minimum(pace.inner.written, root)
    inner, num_made_up = _made_up(plan, own, pace.inner, prefix, longest > 0)
    token = functools.partial(_drawn, plan, params, keys, prefix)
    blank = jnp.zeros((root.shape[0], plan.num_nodes), jnp.int32)

    def begin(cache):
        behind = causal.CausalState(cache, inner.written)
        hidden, cache, _ = causal.store(model, own, behind, prefix, 2)
        return token(jnp.zeros((), jnp.int32), blank, hidden), cache

    def skip(cache):
        shapes = jax.eval_shape(begin, cache)[0]
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), cache

    (first, law), cache = caches.when(longest > 0, begin, skip, inner.cache)

    def put(whole, level, new):
        return whole.at[:, level].set(new)

    def deepen(carry):
        level, tokens, laws, cache = carry
        above = jax.lax.dynamic_slice_in_dim(tokens, level - 1, 1, 1)
        query = causal.chain_query(above, root + level)
        output, cache = model.apply(own, query, cache)
        new, law = token(level, tokens, output.hidden)
        laws = None if laws is None else put(laws, level, law)
        return level + 1, put(tokens, level, new), laws, cache

    laws = None if law is None else jnp.zeros((*blank.shape, law.shape[-1]), law.dtype)
    laws = None if laws is None else put(laws, 0, law)
    begun = (jnp.ones((), jnp.int32), put(blank, 0, first), laws, cache)
    _, tokens, laws, cache = jax.lax.while_loop(lambda c: c[0] < longest, deepen, begun)
    draft = cut(ngram.chain(tokens)._replace(q=laws), length)
    computed = jnp.where(longest > 0, longest + 1, 0) + num_made_up * plan.num_behind
    draft = draft._replace(
        cost=DraftCost(
            # The first call stores two of them.
            num_calls=jnp.where(
                length > 0, length - (2 - missing) // plan.num_behind, 0
            ),
            num_tokens=jnp.where(length > 0, missing + length - 1, 0),
            num_tokens_computed=jnp.broadcast_to(computed, root.shape),
        )
    )
    # Where nothing was drafted the root is not stored either.
    written = jnp.where(
        longest > 0, root + jnp.maximum(length, 1), jnp.minimum(inner.written, root)
    )
    return draft, pace._replace(
        inner=causal.CausalState(cache, written), seen=prefix.length
    )


def _made_up(plan: Plan, own, state: causal.CausalState, prefix: Prefix, drafts: Array):
    """The state with all but two committed tokens stored, and the calls it took."""
    root = prefix.length - 1

    def is_behind(carry):
        state, _ = carry
        written = jnp.minimum(state.written, root)
        return drafts & (root - written > 1).any()

    def make_up(carry):
        state, count = carry
        _, cache, _ = causal.store(plan.model, own, state, prefix, plan.num_behind)
        written = jnp.minimum(state.written, root)
        written = jnp.minimum(written + plan.num_behind, root)
        return causal.CausalState(cache, written), count + 1

    return jax.lax.while_loop(is_behind, make_up, (state, jnp.zeros((), jnp.int32)))


def _drawn(
    plan: Plan, params, keys, prefix: Prefix, level: Array, drafted: Array, hidden
):
    """Tokens [B] behind `level` drafts, and the laws [B, V] they were drawn from."""
    position = (prefix.length + level)[:, None]
    head = plan.model.head(params["drafter"])
    wants = ("token",) if plan.draws == "coupled" else ("probs",)
    places = functools.partial(rng.noise, keys, rng.TARGET, position)
    if plan.lenses:
        views = causal.views_behind(prefix, drafted[:, None], level)
        found = vocab_head.seen_through(
            plan.lenses, params, views, head, hidden, wants, plan.sampling, places
        )
    else:
        found = vocab_head.statistics(head, hidden, wants, plan.sampling, places)
    if plan.draws == "coupled":
        return found.token[:, 0], None
    law = found.probs[:, 0]
    index = jnp.broadcast_to(level, position.shape)
    places = rng.noise(keys, rng.DRAFT, position, round=prefix.length - 1, index=index)
    return choose(law, rng.gumbel(places, law.shape[-1])[:, 0]), law


def _check(choices: tuple[int, ...], max_depth: int, num_nodes: int) -> None:
    if max_depth != num_nodes:
        raise ValueError(
            f"a tree of {num_nodes} nodes and {max_depth} levels cannot be paced: it "
            "must be a chain"
        )
    if not choices or min(choices) < 0 or max(choices) != num_nodes:
        raise ValueError(
            f"{choices=} must be lengths from 0 up to {num_nodes}, the longest"
        )
