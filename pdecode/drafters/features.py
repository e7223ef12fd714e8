"""A draft layer on the target's hidden states as the drafter (EAGLE).

What is committed is kept as in `past`. Features of drafted tokens are the layer's own
guesses and are never kept.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import trees
from pdecode.contracts import (
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
)
from pdecode.drafters import causal, grown, heads, past, static
from pdecode.drafters.past import FeatureState
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["grown_tree", "semi_chain", "static_tree"]

DRAWS = ("best", "without_replacement")


class Plan(NamedTuple):
    """What a draft layer's drafter is made of, checked once."""

    model: Model
    layer: DraftLayer
    sampling: Sampling
    max_depth: int
    draws: str = "best"
    topology: trees.Topology | None = None
    shape: grown.Shape | None = None
    is_last_ahead: bool = False  # the last level is said in the call before it


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
    model: Model,
    layer: DraftLayer,
    num_nodes: int,
    *,
    width: int,
    max_depth: int,
    is_last_ahead: bool = False,
) -> Drafter:
    """Drafts the `num_nodes` likeliest nodes found by a beam of `width` a level.

    As `grown.grown_tree`, with a draft layer in place of a model; params are those of
    the role "layer". With `is_last_ahead` the children of the last level come from what
    the layer said ahead at their parents' parents (`DraftLayer.ahead`), which saves its
    call: all below one node get the same candidates. ValueError for a layer that says
    nothing ahead, and then for fewer than three levels.
    """
    shape = grown.Shape(num_nodes, width, max_depth)
    check(model, layer)
    grown.check(model, shape)
    if is_last_ahead and (layer.ahead is None or max_depth < 3):
        raise ValueError(
            f"{layer.name} with {max_depth=}: the last level is said ahead by a layer "
            "that guesses two tokens (Jakiro's), from the third level on"
        )
    sampling = without_mask(model, Sampling())
    plan = Plan(
        model, layer, sampling, max_depth, shape=shape, is_last_ahead=is_last_ahead
    )
    return _drafter(plan, num_nodes, functools.partial(_propose_grown, plan))


def semi_chain(
    model: Model, layer: DraftLayer, num_blocks: int, sampling: Sampling
) -> Drafter:
    """Drafts `num_blocks` answers of `layer.num_ahead` features each, as one chain.

    The best tokens of an answer's features, all at once; the next answer is that behind
    the last of them, each fed beside the feature before it. Nothing is drawn, so there
    is no q. ValueError for taps that the model lacks, and less than a block.
    """
    check(model, layer, num_ahead=layer.num_ahead)
    if num_blocks < 1:
        raise ValueError(f"{num_blocks=} must be at least 1")
    num_nodes = num_blocks * layer.num_ahead
    plan = Plan(model, layer, without_mask(model, sampling), num_nodes)
    return _drafter(plan, num_nodes, functools.partial(_propose_blocks, plan))


def check(model: Model, layer: DraftLayer, num_ahead: int = 1) -> None:
    """ValueError for a model that does not give what the layer reads, and for a layer
    that answers with more features than are asked for."""
    if layer.num_ahead != num_ahead:
        raise ValueError(
            f"{layer.name} answers with {layer.num_ahead} features a token: a tree has "
            "one; draft with semi_chain, as flash does"
        )
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
        num_prefill_left_out=plan.layer.num_condensed,
    )


def _init(plan: Plan, params, keys, prompt: Prompt, prefix: Prefix, output):
    del keys
    own, target = params["layer"], params["model"]
    return past.init(
        plan.model, plan.layer, plan.max_depth, own, target, prompt, prefix, output
    )


def _observe(plan: Plan, params, keys, state: FeatureState, round: Round):
    del keys
    return past.observe(plan.layer, params["layer"], state, round)


def _store(plan: Plan, params, state: FeatureState, prefix: Prefix):
    return past.store(plan.layer, params["layer"], params["model"], state, prefix)


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


def _propose_blocks(plan: Plan, params, keys, state: FeatureState, prefix: Prefix):
    del keys
    layer, root, size = plan.layer, prefix.length - 1, plan.layer.num_ahead
    guess, cache, num_stored = _store(plan, params, state, prefix)
    tokens, fed, num_lanes = [], [], 0
    for block in range(plan.max_depth // size):
        if block:
            first = root + 1 + (block - 1) * size
            query = _fed(past.pairs(tokens[-1], first, fed[-1]), root, fed[-1])
            guess, cache = layer.apply(params["layer"], params["model"], query, cache)
            guess = guess[:, -1:]
            num_lanes += size
        fed.append(guess.reshape(root.shape[0], size, layer.width))
        hidden, head = layer.law(params["layer"], params["model"], fed[-1])
        tokens.append(heads.best_tokens(head, hidden, 1, plan.sampling)[..., 0])
    every = jnp.concatenate(tokens, 1)
    draft = Draft(
        tokens=every,
        parents=jnp.broadcast_to(jnp.arange(-1, every.shape[1] - 1), every.shape),
        cost=DraftCost(
            num_calls=jnp.full_like(root, len(tokens)),
            num_tokens=num_stored + num_lanes,
            num_tokens_computed=jnp.full_like(root, plan.max_depth + 1 + num_lanes),
        ),
    )
    return draft, state._replace(cache=cache)


def _propose_grown(plan: Plan, params, keys, state: FeatureState, prefix: Prefix):
    del keys
    layer, root, own = plan.layer, prefix.length - 1, params["layer"]
    assert plan.shape is not None, "of a growing tree"
    whole = plan.shape
    shape = whole._replace(max_depth=whole.max_depth - plan.is_last_ahead)
    guess, cache, num_stored = _store(plan, params, state, prefix)
    num_lanes = (shape.max_depth - 1) * shape.width

    def call(growth: trees.Growth, guesses: Array):
        fed = _at_parents(growth, guesses, guess, num_lanes)
        query = _fed(grown.beam_query(growth, root), root, fed)
        guesses, _ = layer.apply(own, params["model"], query, cache)
        return guesses, guesses

    def best(law, guess: Array):
        hidden, head = law(own, params["model"], guess)
        wants = (f"top:{shape.width}",)
        found = vocab_head.statistics(head, hidden, wants, plan.sampling)
        return found.top_ids, found.top_log_probs

    def offers(guess: Array, growth: trees.Growth, level: Array):
        del growth, level
        return best(layer.law, guess)

    none = jnp.zeros((root.shape[0], num_lanes, guess.shape[-1]), guess.dtype)
    growing, guesses = grown.grown(shape, guess, offers, call, none)
    cost = grown.cost_of(shape, growing, num_stored, plan.max_depth + 1)
    if plan.is_last_ahead:
        every = shape.max_depth * shape.width
        parents = _at_parents(growing.growth, guesses, guess, every)[:, -shape.width :]
        growing = growing._replace(growth=trees.deepened(growing.growth))
        ids, logs = best(layer.ahead, parents)
        growing = grown.add_level(growing, ids, logs, whole.num_nodes, None)
    tokens, parents = trees.rerank(growing.growth, whole.num_nodes)
    return Draft(tokens, parents, cost=cost), state._replace(cache=cache)


def _at_parents(growth: trees.Growth, guesses: Array, guess: Array, count: int):
    """What the layer said [B, count, F] at the parents of the first beam nodes."""
    parent = trees.beam(growth)[1][:, :count, None]
    found = jnp.take_along_axis(guesses, jnp.maximum(parent, 0), 1)
    return jnp.where(parent < 0, guess, found)
