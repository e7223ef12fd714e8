"""A causal model's token tree that grows with its confidence, level by level.

The tree is a function of the drafter's laws alone, nothing is drawn, so it has no q and
any rule may judge it as given (`accept.match` token for token).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import prompts, trees
from pdecode.contracts import (
    Draft,
    DraftCost,
    Drafter,
    Lens,
    Model,
    Prefix,
    Query,
    Sampling,
    Visibility,
)
from pdecode.drafters import causal, ignore
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = [
    "Growing",
    "Shape",
    "add_level",
    "beam_query",
    "check",
    "cost_of",
    "grown",
    "grown_tree",
    "paths_to",
]


class Growing(NamedTuple):
    """Carry of the loop over levels."""

    growth: trees.Growth
    level: Array  # int32 []
    more: Array  # bool [B]  the row grows on
    mass: Array  # float32 [B]  expected accepted length of the best nodes so far
    num_levels: Array  # int32 [B]


class Shape(NamedTuple):
    """How large a growing tree may become."""

    num_nodes: int
    width: int
    max_depth: int
    min_gain: Any = None


class Plan(NamedTuple):
    """What a growing tree is made of, checked once."""

    model: Model
    shape: Shape
    lenses: tuple[Lens, ...]
    sampling: Sampling


def grown_tree(
    model: Model,
    num_nodes: int,
    *,
    width: int,
    max_depth: int,
    min_gain: Any = None,
    lenses: Sequence[Lens] = (),
) -> Drafter:
    """Drafts the `num_nodes` likeliest nodes found by a beam of `width` a level.

    Each beam node offers its `width` best tokens; the best `width` of these are the
    next beam, and the best `num_nodes` of all levels the draft (EAGLE-2, Li et al.,
    2024, arXiv:2406.16858). With `min_gain` a row stops at the level that adds less
    than so many expected tokens (OPT-Tree, Wang et al., 2024, arXiv:2406.17276). Params
    are those of the role "drafter". `lenses` change the drafter's law as they do the
    target's, each node in its own context. A level's call repeats the beams above it,
    unstored; all levels are one program.
    """
    shape = Shape(num_nodes, width, max_depth, min_gain)
    check(model, shape)
    causal.check_lenses(lenses)
    plan = Plan(model, shape, tuple(lenses), without_mask(model, Sampling()))
    return Drafter(
        num_nodes,
        max_depth,
        functools.partial(_init, plan),
        functools.partial(_propose, plan),
        ignore,
        num_prefill_calls=1,
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output):
    del keys, output
    size = prefix.tokens.shape[1] + 2 * plan.shape.max_depth + 1
    cache = plan.model.init_cache(prompt, caches.num_slots(size))
    _, cache = prompts.prefill(plan.model, params["drafter"], prompt, cache, drop=1)
    return causal.CausalState(cache, prompt.lengths - 1)


def _propose(plan: Plan, params, keys, state: causal.CausalState, prefix: Prefix):
    del keys
    model, own, root = plan.model, params["drafter"], prefix.length - 1
    shape, max_depth = plan.shape, plan.shape.max_depth
    hidden, cache, num_missing = causal.store(model, own, state, prefix, max_depth + 1)

    def call(growth: trees.Growth, memory):
        return model.apply(own, beam_query(growth, root), cache)[0].hidden, memory

    def offers(hidden: Array, growth: trees.Growth, level: Array):
        paths = None
        if plan.lenses:  # behind the root (level 0) nothing of a path is read
            first = (level - 1) * shape.width
            paths = paths_to(growth, first)[:, : hidden.shape[1]]
        return _offers(plan, params, prefix, hidden, paths, level)

    growing, _ = grown(shape, hidden, offers, call)
    tokens, parents = trees.rerank(growing.growth, shape.num_nodes)
    after = causal.CausalState(cache, prefix.length)
    cost = cost_of(shape, growing, num_missing, max_depth + 1)
    return Draft(tokens, parents, cost=cost), after


def grown(
    shape: Shape, hidden: Array, offers: Callable, call: Callable, memory: Any = ()
) -> tuple[Growing, Any]:
    """All levels behind the root, whose state is `hidden` [B, 1, E]; and `memory`.

    `offers(hidden [B, Q, E], growth, level) -> (ids, log-probabilities [B, Q, K])` are
    the best tokens behind each state; `call(growth, memory) -> (hidden [B, (D - 1) * K,
    E], memory)` is a call of the beams of all levels but the last.
    """
    batch, width = hidden.shape[0], shape.width

    def next_level(growing: Growing, ids: Array, log_probs: Array) -> Growing:
        return add_level(growing, ids, log_probs, shape.num_nodes, shape.min_gain)

    def deepen(carry):
        growing, memory = carry
        states, memory = call(growing.growth, memory)
        first = (growing.level - 1) * width
        here = jax.lax.dynamic_slice_in_dim(states, first, width, 1)
        ids, log_probs = offers(here, growing.growth, growing.level)
        return next_level(growing, ids, log_probs), memory

    growing = Growing(
        growth=trees.seed(batch, shape.max_depth, width),
        level=jnp.zeros((), jnp.int32),
        more=jnp.ones(batch, bool),
        mass=jnp.zeros(batch, jnp.float32),
        num_levels=jnp.zeros(batch, jnp.int32),
    )
    # The root's children, in the first of `width` equal rows.
    offered = offers(hidden, growing.growth, growing.level)
    ids, log_probs = (jnp.repeat(each, width, 1) for each in offered)
    growing = next_level(growing, ids, log_probs)
    return jax.lax.while_loop(
        lambda carry: (carry[0].level < shape.max_depth) & carry[0].more.any(),
        deepen,
        (growing, memory),
    )


def cost_of(shape: Shape, growing: Growing, num_stored: Array, width: int) -> DraftCost:
    """Of a grown tree, `num_stored` int32 [B] of `width` lanes stored before it."""
    num_levels, lanes = growing.num_levels, (shape.max_depth - 1) * shape.width
    return DraftCost(
        num_calls=num_levels,
        num_tokens=num_stored + shape.width * num_levels * (num_levels - 1) // 2,
        num_tokens_computed=width + (num_levels - 1) * lanes,
    )


def _offers(
    plan: Plan, params, prefix: Prefix, hidden: Array, paths: Array | None, level: Array
) -> tuple[Array, Array]:
    """The best tokens behind each of `paths` [B, Q, D] of `level` tokens, and logs."""
    head, wants = plan.model.head(params["drafter"]), (f"top:{plan.shape.width}",)
    if paths is None or not plan.lenses:
        found = vocab_head.statistics(head, hidden, wants, plan.sampling)
    else:
        views = causal.views_behind(prefix, paths, level)
        found = vocab_head.seen_through(
            plan.lenses, params, views, head, hidden, wants, plan.sampling
        )
    return found.top_ids, found.top_log_probs


def add_level(
    growing: Growing, top_ids: Array, log_probs: Array, num_nodes: int, min_gain: Any
) -> Growing:
    """One level more, and whether the next is worth a call."""
    growth = trees.grow(growing.growth, growing.level, top_ids, log_probs, growing.more)
    num_levels = growing.num_levels + growing.more
    if min_gain is None:
        return Growing(
            growth, growing.level + 1, growing.more, growing.mass, num_levels
        )
    flat = growth.scores.reshape(growth.scores.shape[0], -1)
    mass = jnp.exp(jax.lax.top_k(flat, num_nodes)[0]).sum(1)
    more = growing.more & (mass - growing.mass > min_gain)
    return Growing(growth, growing.level + 1, more, mass, num_levels)


def beam_query(growth: trees.Growth, root: Array) -> Query:
    """The beams of all levels but the last as unstored lanes behind the prefix.

    Levels that are not grown yet are padding: nobody reads their output.
    """
    tokens, parents = trees.beam(growth)
    size = (growth.beam.shape[1] - 1) * growth.width
    reach = trees.ancestors(parents[:, :size])
    shape = (root.shape[0], size)
    return Query(
        tokens=tokens[:, :size],
        positions=root[:, None] + trees.depths(reach)[:, 1:],
        slots=None,
        visible=Visibility(
            start=jnp.zeros(shape, jnp.int32),
            stop=jnp.broadcast_to(root[:, None] + 1, shape),
            among=reach[:, 1:, 1:],
        ),
    )


def paths_to(growth: trees.Growth, first: Array) -> Array:
    """Tokens int32 [B, K, D] from the root's child to each beam node from `first` on.

    Behind the node's own depth there is nothing to be read.
    """
    tokens, parents = trees.beam(growth)
    batch, width = tokens.shape[0], growth.width
    reach = trees.ancestors(parents)[:, 1:, 1:]
    here = jax.lax.dynamic_slice_in_dim(reach, first, width, 1)
    # One node a level at most is on a path.
    on_path = jnp.where(here, tokens[:, None], 0).reshape(batch, width, -1, width)
    return on_path.sum(-1, dtype=jnp.int32)


def check(model: Model, shape: Shape) -> None:
    """ValueError for a tree that `model`'s ids or its own levels cannot fill."""
    num_nodes, width, max_depth, _ = shape
    most = width + (max_depth - 1) * width**2
    if not 1 <= width <= model.vocab_size:
        raise ValueError(f"{width=} must lie in [1, {model.vocab_size}], the ids")
    if max_depth < 2:
        raise ValueError(f"{max_depth=} must be at least 2: a tree of one level is "
                         "trees.expand((width,))")  # fmt: skip
    if not max_depth < num_nodes <= most:
        raise ValueError(
            f"{num_nodes=} must lie in ({max_depth}, {most}]: more than max_depth, and "
            f"no more than {max_depth} levels of {width=} offer"
        )
