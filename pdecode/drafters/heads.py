"""Extra heads on the target's last hidden state as the drafter.

Heads with a layer of their own before them (`past`) read its answer at the root: one
call of it a draft, over what was committed since the last.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import trees
from pdecode.contracts import (
    ChainedHeads,
    Draft,
    DraftCost,
    Drafter,
    DraftHeads,
    Head,
    Model,
    Prefix,
    Round,
    Sampling,
)
from pdecode.drafters import past, static
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = [
    "best_tokens",
    "chained_tree",
    "cut",
    "greedy_chain",
    "last_lane",
    "tree",
]


def greedy_chain(model: Model, heads: DraftHeads, num_draft: int) -> Drafter:
    """Drafts each head's argmax as a chain; their params are those of the role "heads".

    Head k reads the hidden state that predicted the root, which the last verifying call
    computed, so a draft costs no call. ValueError if there are too few heads.
    """
    if num_draft > heads.num_heads:
        raise ValueError(
            f"num_draft={num_draft} exceeds the {heads.num_heads} heads of {heads.name}"
        )

    sampling = without_mask(model, Sampling())

    def propose(params, keys, state, prefix: Prefix):
        del keys
        hidden, state, cost = _read(heads, params["heads"], params, state, prefix)
        ahead = heads.apply(params["heads"], hidden)[:, :num_draft]
        its = model.head(params["model"])
        if heads.own_heads is None:
            tokens = vocab_head.statistics(its, ahead, ("token",), sampling).token
        else:
            each = heads.own_heads(params["heads"], its)[:num_draft]
            tokens = jnp.concatenate(
                [
                    vocab_head.statistics(
                        own, ahead[:, k : k + 1], ("token",), sampling
                    ).token
                    for k, own in enumerate(each)
                ],
                1,
            )
        parents = jnp.broadcast_to(jnp.arange(-1, num_draft - 1), tokens.shape)
        return Draft(tokens=tokens, parents=parents, cost=cost), state

    return _drafter(model, heads, "heads", num_draft, num_draft, propose)


def tree(model: Model, heads: DraftHeads, topology: trees.Topology) -> Drafter:
    """Drafts `topology` of independent heads; params are those of the role "heads".

    The child of rank r of a node of depth d is the r-th best token of head d, whatever
    the node: one call of each head makes the tree, and none sees what others drafted
    (Medusa, Cai et al., 2024, arXiv:2401.10774). Nothing is drawn, so there is no q.
    ValueError for more levels than heads and more children than ids.
    """
    _check(model, heads, topology)
    sampling = without_mask(model, Sampling())
    levels = static.levels(topology)

    def propose(params, keys, state, prefix: Prefix):
        del keys
        hidden, state, cost = _read(heads, params["heads"], params, state, prefix)
        ahead = heads.apply(params["heads"], hidden)
        its = model.head(params["model"])
        each: tuple[Head, ...] = (its,) * heads.num_heads
        if heads.own_heads is not None:
            each = heads.own_heads(params["heads"], its)
        tokens = []
        for level, own in zip(levels, each):
            here = ahead[:, level.depth - 1 : level.depth]
            best = best_tokens(own, here, int(level.nth.max()) + 1, sampling)
            tokens.append(best[:, 0][:, level.nth])
        return static.in_order(topology, levels, tokens, cost=cost), state

    num_nodes, max_depth = topology.num_nodes, topology.max_depth
    return _drafter(model, heads, "heads", num_nodes, max_depth, propose)


def chained_tree(
    model: Model, heads: ChainedHeads, topology: trees.Topology
) -> Drafter:
    """Drafts `topology` of heads that see the path above; role "chained_heads".

    Level by level, each head on every node above that has children; the children of a
    node are its head's best tokens there (Hydra, Ankner et al., 2024,
    arXiv:2402.05109). Nothing is drawn, so there is no q. Errors as `tree`.
    """
    _check(model, heads, topology)
    sampling = without_mask(model, Sampling())
    levels = static.levels(topology)

    def propose(params, keys, state, prefix: Prefix):
        del keys
        own, target = params["chained_heads"], params["model"]
        hidden, state, cost = _read(heads, own, params, state, prefix)
        root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
        tokens: list[Array] = []
        for level in levels:
            # Only nodes with children are asked for them.
            asked, which = np.unique(level.parent, return_inverse=True)
            shape = (root.shape[0], len(asked), 1)
            seen = jnp.broadcast_to(root[:, None], shape)
            if level.depth > 1:
                above = jnp.maximum(jnp.concatenate(tokens, 1), 0)
                seen = jnp.concatenate([seen, above[:, level.paths[asked]]], 2)
            here = jnp.broadcast_to(hidden[:, None], (*shape[:2], hidden.shape[-1]))
            found, head = heads.apply(own, target, level.depth - 1, here, seen)
            best = best_tokens(head, found, int(level.nth.max()) + 1, sampling)
            tokens.append(best[:, jnp.asarray(which), level.nth])
        return static.in_order(topology, levels, tokens, cost=cost), state

    num_nodes, max_depth = topology.num_nodes, topology.max_depth
    return _drafter(model, heads, "chained_heads", num_nodes, max_depth, propose)


def best_tokens(head: Head, hidden: Array, count: int, sampling: Sampling) -> Array:
    """The `count` best int32 [B, Q, count] of hidden [B, Q, E]; what is banned: -1."""
    found = vocab_head.statistics(head, hidden, (f"top:{count}",), sampling)
    # Banned ids have a logit of -1e30: no proposals.
    return jnp.where(found.top_log_probs > -1e20, found.top_ids, -1)


def cut(topology: trees.Topology, heads: DraftHeads) -> trees.Topology:
    """As many levels of `topology` as there are heads."""
    max_depth = heads.num_heads
    depths = [depth for depth in topology.depths if depth <= max_depth]
    kept = [i for i, depth in enumerate(topology.depths) if depth <= max_depth]
    place = {-1: -1, **{old: new for new, old in enumerate(kept)}}
    return trees.Topology(
        tuple(place[topology.parents[i]] for i in kept), tuple(depths)
    )


def _check(model: Model, heads, topology: trees.Topology) -> None:
    if topology.max_depth > heads.num_heads:
        raise ValueError(
            f"a tree of {topology.max_depth} levels needs as many heads, but "
            f"{heads.name} are {heads.num_heads}"
        )
    if not 1 <= topology.max_children <= model.vocab_size:
        raise ValueError(
            f"a node with {topology.max_children} children: it has 1 at least, and at "
            f"most the {model.vocab_size} ids of {model.name}"
        )


def _drafter(model, heads, role: str, num_nodes: int, max_depth: int, propose):
    """A drafter whose state is what heads read, or that of the layer before them."""
    layer = heads.past
    if layer is None:
        init = functools.partial(_init, model)
        return Drafter(num_nodes, max_depth, init, propose, _observe)

    def init_past(params, keys, prompt, prefix: Prefix, output):
        del keys
        own, target = params[role]["past"], params["model"]
        return past.init(model, layer, max_depth, own, target, prompt, prefix, output)

    def observe(params, keys, state, round: Round):
        del keys
        return past.observe(layer, params[role]["past"], state, round)

    return Drafter(
        num_nodes, max_depth, init_past, propose, observe, num_prefill_calls=1
    )


def _read(heads, own, params, state, prefix: Prefix):
    """What the heads read [B, E], the drafter's state, and what that cost."""
    if heads.past is None:
        return state, state, None
    target = params["model"]
    found, cache, count = past.store(heads.past, own["past"], target, state, prefix)
    computed = jnp.full_like(count, state.features.shape[1])
    cost = DraftCost(jnp.ones_like(count), count, computed)
    return found[:, 0], state._replace(cache=cache), cost


def _init(model: Model, params, keys, prompt, prefix: Prefix, output) -> Array:
    """The state [B, E] that predicted the root."""
    del keys, prefix
    batch = prompt.lengths.shape[0]
    if output is None:
        weight = model.head(params["model"]).weight
        return jnp.zeros((batch, weight.shape[1]), weight.dtype)
    # The prefill's last lane predicted the root. A one-token row has none: it
    # starts from whatever lane 0 holds, which costs acceptance and nothing else.
    lane = jnp.maximum(prompt.lengths - 2, 0)
    return jnp.take_along_axis(output.hidden, lane[:, None, None], 1)[:, 0]


def _observe(params, keys, hidden: Array, round: Round) -> Array:
    del params, keys
    leaf = last_lane(round)
    found = jnp.take_along_axis(round.output.hidden, leaf[:, None, None], 1)
    return found[:, 0].astype(hidden.dtype)


def last_lane(round: Round) -> Array:
    """Lane int32 [B] of the last accepted token, the root's if none was."""
    if round.path.shape[1] == 0:
        return jnp.zeros_like(round.num_accepted)
    return round.path[:, -1]  # the path repeats its leaf
