"""A draft layer on the target's hidden states as the drafter (EAGLE).

The layer's slot t holds token t and the target's feature of position t - 1, which is
known when the token is: features of drafted tokens are the layer's own guesses and are
never kept. Token 0 has no feature before it; its slot is seen by nobody but the first
draft of a row that is no longer.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import trees
from pdecode.contracts import (
    Cache,
    Draft,
    DraftCost,
    Drafter,
    DraftLayer,
    Model,
    Prefix,
    Prompt,
    Query,
    Round,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.drafters import causal, grown, heads, static
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["FeatureState", "grown_tree", "static_tree"]

DRAWS = ("best", "without_replacement")


class FeatureState(NamedTuple):
    """The slots before `first` hold committed tokens and true features."""

    cache: Cache
    first: Array  # int32 [B]  slot of the first of `features`
    features: Array  # [B, 1 + D, E]  the target's before each token not stored yet


class Plan(NamedTuple):
    """What a draft layer's drafter is made of, checked once."""

    model: Model
    layer: DraftLayer
    sampling: Sampling
    max_depth: int
    draws: str = "best"
    topology: trees.Topology | None = None
    shape: grown.Shape | None = None


def static_tree(
    model: Model,
    layer: DraftLayer,
    topology: trees.Topology,
    sampling: Sampling,
    *,
    draws: str = "best",
) -> Drafter:
    """Drafts `topology` level by level; params are those of the role "layer".

    The children of a node are the layer's best tokens there, as given and without q
    ("best"), or drawn in turn, each from what its elder siblings leave of the layer's
    law ("without_replacement"), which is their q. A call of the layer a level; a
    tree's calls repeat the nodes above them, unstored, and a chain's nodes are stored
    until the true features replace them. ValueError for taps that the model lacks, an
    empty tree, more children than ids and unknown draws.
    """
    check(model, layer)
    if draws not in DRAWS:
        raise ValueError(f"{draws=} must be one of {DRAWS}")
    if not 1 <= topology.max_children <= model.vocab_size:
        raise ValueError(
            f"a node with {topology.max_children} children: it has 1 at least, and at "
            f"most the {model.vocab_size} ids of {model.name}"
        )
    plan = Plan(
        model, layer, without_mask(model, sampling), topology.max_depth, draws, topology
    )
    propose = functools.partial(_propose_static, plan)
    return _drafter(plan, topology.num_nodes, propose)


def grown_tree(
    model: Model, layer: DraftLayer, num_nodes: int, *, width: int, max_depth: int
) -> Drafter:
    """Drafts the `num_nodes` likeliest nodes found by a beam of `width` a level.

    As `grown.grown_tree`, with a draft layer in place of a model; params are those of
    the role "layer".
    """
    shape = grown.Shape(num_nodes, width, max_depth)
    check(model, layer)
    grown.check(model, shape)
    sampling = without_mask(model, Sampling())
    plan = Plan(model, layer, sampling, max_depth, shape=shape)
    return _drafter(plan, num_nodes, functools.partial(_propose_grown, plan))


def check(model: Model, layer: DraftLayer) -> None:
    """ValueError for a model that does not give what the layer reads."""
    missing = [name for name in layer.taps if name not in model.taps]
    if missing:
        raise ValueError(
            f"{layer.name} reads the taps {layer.taps} of its target, but {model.name} "
            f"has taps={model.taps}: build it with those"
        )


def _drafter(plan: Plan, num_nodes: int, propose) -> Drafter:
    return Drafter(
        num_nodes,
        plan.max_depth,
        functools.partial(_init, plan),
        propose,
        functools.partial(_observe, plan),
        num_prefill_calls=1,
    )


def _init(plan: Plan, params, keys, prompt: Prompt, prefix: Prefix, output):
    """The prompt's pairs but the last in the cache; that one waits."""
    del keys
    layer, own = plan.layer, params["layer"]
    batch, length = prefix.tokens.shape
    room = length + 2 * plan.max_depth + 2
    cache = layer.init_cache(prompt, caches.num_slots(room))
    last = prompt.lengths - 1
    if output is None:
        dtype = plan.model.head(params["model"]).weight.dtype
        before = jnp.zeros((batch, 1, layer.width), dtype)
    else:
        # tokens a b c: b stands beside the feature at a, and nothing beside a
        features = layer.read(own, output)
        before = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))
        query = _pairs(prompt.tokens[:, :-1], jnp.zeros_like(last), before[:, :-1])
        _, cache = layer.apply(own, params["model"], query, cache)
    waiting = jnp.take_along_axis(before, last[:, None, None], 1)
    waiting = jnp.pad(waiting, ((0, 0), (0, plan.max_depth), (0, 0)))
    return FeatureState(cache, last, waiting)


def _observe(plan: Plan, params, keys, state: FeatureState, round: Round):
    """The target's features at the root and at each accepted node."""
    del keys
    lanes = jnp.pad(round.path, ((0, 0), (1, 0)))  # the root's lane is 0
    output = jax.tree.map(
        lambda leaf: jnp.take_along_axis(leaf, lanes[..., None], 1), round.output
    )
    features = plan.layer.read(params["layer"], output)
    return FeatureState(
        state.cache, round.prefix.length, features.astype(state.features.dtype)
    )


def _store(plan: Plan, params, state: FeatureState, prefix: Prefix):
    """Stores what was committed: the guess [B, 1, E] at the root, cache, how many."""
    place = state.first[:, None] + jnp.arange(plan.max_depth + 1, dtype=jnp.int32)[None]
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    tokens = jnp.take_along_axis(prefix.tokens, last, 1)
    query = _pairs(tokens, state.first, state.features)
    guess, cache = plan.layer.apply(
        params["layer"], params["model"], query, state.cache
    )
    lane = jnp.clip(prefix.length - 1 - state.first, 0, plan.max_depth)
    guess = jnp.take_along_axis(guess, lane[:, None, None], 1)
    return guess, cache, prefix.length - state.first


def _pairs(tokens: Array, first: Array, features: Array) -> Query:
    """Tokens [B, Q] from slot `first` on beside the features before them, stored."""
    place = first[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    # What stands behind the row's text is written over before it is seen.
    visible = Visibility(jnp.minimum(place, 1), place + 1)
    return Query(tokens, place, SlotRun(first), visible, features)


def _fed(query: Query, root: Array, features: Array) -> Query:
    """Drafted lanes beside features; they see slot 0 where the root stands in it."""
    start = jnp.broadcast_to(jnp.minimum(root, 1)[:, None], query.tokens.shape)
    visible = query.visible._replace(start=start)
    return query._replace(extra=features, visible=visible)


def _propose_static(plan: Plan, params, keys, state: FeatureState, prefix: Prefix):
    topology, layer = plan.topology, plan.layer
    assert topology is not None, "of a static tree"
    root = prefix.length - 1
    is_chain = topology.max_depth == topology.num_nodes
    guess, cache, num_stored = _store(plan, params, state, prefix)
    noise = None
    if plan.draws != "best":
        noise = causal.draft_noise(keys, root, topology, plan.model.vocab_size)
    tokens, fed, laws, num_lanes = [], [], [], 0
    levels = static.levels(topology)
    for level in levels:
        if level.depth > 1:
            if is_chain:
                query = causal.chain_query(tokens[-1], root + level.depth - 1)
                query = _fed(query, root, fed[-1])
            else:
                above = jnp.concatenate(tokens, 1)
                query = static.tree_query(above, root, level, topology)
                query = _fed(query, root, jnp.concatenate(fed, 1))
            guess, after = layer.apply(params["layer"], params["model"], query, cache)
            cache = after if is_chain else cache
            guess = guess[:, -tokens[-1].shape[1] :]
            num_lanes += query.tokens.shape[1]
        drawn, law = _children(plan, params, noise, level, guess)
        tokens.append(drawn)
        laws.append(law)
        fed.append(guess[:, level.parent])
    cost = DraftCost(
        num_calls=jnp.full_like(root, len(levels)),
        num_tokens=num_stored + num_lanes,
        num_tokens_computed=jnp.full_like(root, plan.max_depth + 1 + num_lanes),
    )
    draft = static.in_order(topology, levels, tokens, laws, cost)
    return draft, state._replace(cache=cache)


def _children(plan: Plan, params, noise, level: static.Level, guess: Array):
    """Tokens [B, n] of a level and the laws they were drawn from, if any."""
    hidden, head = plan.layer.law(params["layer"], params["model"], guess)
    if plan.draws != "best":
        found = vocab_head.statistics(head, hidden, ("probs",), plan.sampling)
        return causal.draw(plan.draws, noise, level, found)
    best = heads.best_tokens(head, hidden, int(level.nth.max()) + 1, plan.sampling)
    return best[:, level.parent, level.nth], None


def _propose_grown(plan: Plan, params, keys, state: FeatureState, prefix: Prefix):
    del keys
    layer, shape, root = plan.layer, plan.shape, prefix.length - 1
    assert shape is not None, "of a growing tree"
    guess, cache, num_stored = _store(plan, params, state, prefix)
    num_lanes = (shape.max_depth - 1) * shape.width

    def call(growth: trees.Growth, guesses: Array):
        _, parents = trees.beam(growth)
        parent = parents[:, :num_lanes, None]
        fed = jnp.take_along_axis(guesses, jnp.maximum(parent, 0), 1)
        fed = jnp.where(parent < 0, guess, fed)
        query = _fed(grown.beam_query(growth, root), root, fed)
        guesses, _ = layer.apply(params["layer"], params["model"], query, cache)
        return guesses, guesses

    def offers(guess: Array, growth: trees.Growth, level: Array):
        del growth, level
        hidden, head = layer.law(params["layer"], params["model"], guess)
        wants = (f"top:{shape.width}",)
        found = vocab_head.statistics(head, hidden, wants, plan.sampling)
        return found.top_ids, found.top_log_probs

    none = jnp.zeros((root.shape[0], num_lanes, layer.width), guess.dtype)
    growing, _ = grown.grown(shape, guess, offers, call, none)
    tokens, parents = trees.rerank(growing.growth, shape.num_nodes)
    cost = grown.cost_of(shape, growing, num_stored, plan.max_depth + 1)
    return Draft(tokens, parents, cost=cost), state._replace(cache=cache)
