"""A draft layer that says a block of features a call as the drafter (Falcon).

A lane is a token beside the feature before it, read along the text by the layer's
recurrent part. The lanes of the last K tokens say the next K levels of the tree, each
its own whatever the levels between say; a path of K drafted tokens, beside the K
features that were said, is the next block. As in `features`, what is drafted is never
kept: each round stores what was accepted beside the target's true features.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode import trees
from pdecode.contracts import (
    BlockLayer,
    Cache,
    Draft,
    DraftCost,
    Drafter,
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

__all__ = ["BlockState", "static_tree"]


class BlockState(NamedTuple):
    """What is stored, up to the token before `first`, is committed."""

    cache: Cache  # position p in slot p + K - 1
    memory: Array  # [B, R, 2, E]  of the recurrent part, behind what is stored
    tail: Array  # [B, K - 1, E]  its last streams, which may stand in the next block
    first: Array  # int32 [B]  position of the first of `features`
    features: Array  # [B, 1 + D, E]  the target's before each token not stored yet


class Group(NamedTuple):
    """Up to K levels of a static tree that one call says."""

    nodes: np.ndarray  # int [n]
    law: np.ndarray  # int [n]  which of the call's answers, block by block
    nth: np.ndarray  # int [n]  which child of its parent
    paths: np.ndarray  # int [U, K]  nodes of each block that is fed; [0, K]: the text
    above: np.ndarray  # int [U]  the block, a group before, that said its features
    seen: np.ndarray  # bool [W, W]  lanes of all blocks so far, those each one sees
    place: np.ndarray  # int [W]  positions of these lanes behind the root


class Plan(NamedTuple):
    """What a block drafter is made of, checked once."""

    model: Model
    layer: BlockLayer
    topology: trees.Topology
    sampling: Sampling
    groups: list[Group]

    @property
    def max_depth(self) -> int:
        return self.topology.max_depth


def static_tree(model: Model, layer: BlockLayer, topology: trees.Topology) -> Drafter:
    """Drafts `topology`, K levels a call; params are those of the role "block_layer".

    The children of a node are the best tokens of the answer for their level, of the
    block that ends at the last K-th level above. Nothing is drawn, so there is no q. A
    call repeats the blocks above it, unstored. ValueError for an empty tree and more
    children than ids.
    """
    if not 1 <= topology.max_children <= model.vocab_size:
        raise ValueError(
            f"a node with {topology.max_children} children: it has 1 at least, and at "
            f"most the {model.vocab_size} ids of {model.name}"
        )
    sampling = without_mask(model, Sampling())
    plan = Plan(model, layer, topology, sampling, _groups(topology, layer.block_len))
    return Drafter(
        topology.num_nodes,
        topology.max_depth,
        functools.partial(_init, plan),
        functools.partial(_propose, plan),
        functools.partial(_observe, plan),
        num_prefill_calls=1,
        num_prefill_left_out=1,  # token 0 has no feature before it
    )


def _init(plan: Plan, params, keys, prompt: Prompt, prefix: Prefix, output):
    """The prompt but its last token stored; that one waits."""
    del keys
    layer, own = plan.layer, params["block_layer"]
    batch, length = prefix.tokens.shape
    lead, last = layer.block_len - 1, prompt.lengths - 1
    room = lead + length + plan.max_depth + 1
    cache = layer.init_cache(prompt, caches.num_slots(room))
    if output is None:
        dtype = plan.model.head(params["model"]).weight.dtype
        before = jnp.zeros((batch, 1, layer.width), dtype)
    else:
        # tokens a b c: b stands beside the feature at a, and nothing beside a
        before = jnp.pad(output.hidden, ((0, 0), (1, 0), (0, 0)))
    memory = jnp.zeros((batch, layer.num_memories, 2, layer.width), before.dtype)
    tail = jnp.zeros((batch, lead, layer.width), before.dtype)
    if output is not None and before.shape[1] > 2:
        # Token 0 has no feature before it: the recurrent part begins behind it.
        streams, every = layer.advance(
            own, params["model"], prompt.tokens[:, 1:-1], before[:, 1:-1], memory
        )
        place = 1 + jnp.arange(streams.shape[1], dtype=jnp.int32)[None]
        place = jnp.broadcast_to(place, streams.shape[:2])
        # What stands behind the row's text is written over before it is seen.
        visible = Visibility(jnp.full_like(place, lead + 1), lead + 1 + place)
        slots = SlotRun(jnp.full_like(last, lead + 1))
        query = Query(jnp.zeros_like(place), place, slots, visible, streams)
        _, cache = layer.apply(own, query, cache)
        memory, tail = _behind(memory, tail, every, streams, jnp.maximum(last - 1, 0))
    waiting = jnp.take_along_axis(before, last[:, None, None], 1)
    waiting = jnp.pad(waiting, ((0, 0), (0, plan.max_depth), (0, 0)))
    return BlockState(cache, memory, tail, last, waiting)


def _behind(memory: Array, tail: Array, every: Array, streams: Array, count: Array):
    """Memory and tail after the first `count` [B] lanes of a text."""
    both = jnp.concatenate([tail, streams], 1)
    nth = count[:, None] + jnp.arange(tail.shape[1])[None]
    whole = jnp.concatenate([memory[:, None], every], 1)
    memory = jnp.take_along_axis(whole, count[:, None, None, None, None], 1)[:, 0]
    return memory, jnp.take_along_axis(both, nth[..., None], 1)


def _observe(plan: Plan, params, keys, state: BlockState, round: Round):
    """The target's features at the root and at each accepted node."""
    del params, keys
    lanes = jnp.pad(round.path, ((0, 0), (1, 0)))  # the root's lane is 0
    features = jnp.take_along_axis(round.output.hidden, lanes[..., None], 1)
    features = features.astype(state.features.dtype)
    return state._replace(first=round.prefix.length, features=features)


def _store(plan: Plan, params, state: BlockState, prefix: Prefix):
    """Stores what was committed: the block's answers [B, K, E], and the new state."""
    layer, own = plan.layer, params["block_layer"]
    lead, root = layer.block_len - 1, prefix.length - 1
    place = state.first[:, None] + jnp.arange(plan.max_depth + 1, dtype=jnp.int32)[None]
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    tokens = jnp.take_along_axis(prefix.tokens, last, 1)
    streams, every = layer.advance(
        own, params["model"], tokens, state.features, state.memory
    )
    lanes = jnp.concatenate([state.tail, streams], 1)
    place = state.first[:, None] - lead + jnp.arange(lanes.shape[1])[None]
    start = jnp.minimum(root, 1) + lead  # token 0 is seen where it is the root alone
    visible = Visibility(
        jnp.broadcast_to(start[:, None], place.shape),
        jnp.broadcast_to(root[:, None] + lead + 1, place.shape),
    )
    query = Query(
        jnp.zeros_like(place), jnp.maximum(place, 0), SlotRun(state.first), visible,
        lanes.astype(streams.dtype),
    )  # fmt: skip
    found, cache = layer.apply(own, query, state.cache)
    count = prefix.length - state.first
    nth = count[:, None] - 1 + jnp.arange(layer.block_len)[None]
    answers = jnp.take_along_axis(found, nth[..., None], 1)
    memory, tail = _behind(state.memory, state.tail, every, streams, count)
    # Nothing is read before token 1, which has a feature before it.
    is_text = (root > 0)[:, None, None]
    return answers, state._replace(
        cache=cache,
        memory=jnp.where(is_text[..., None], memory, 0).astype(state.memory.dtype),
        tail=jnp.where(is_text, tail, 0).astype(state.tail.dtype),
    )


def _propose(plan: Plan, params, keys, state: BlockState, prefix: Prefix):
    del keys
    layer, own, target = plan.layer, params["block_layer"], params["model"]
    size, root, head = layer.block_len, prefix.length - 1, plan.model.head(target)
    said, state = _store(plan, params, state, prefix)
    batch, width = said.shape[0], layer.width
    memory = state.memory[:, None]
    num_asked = prefix.length - state.first + size - 1
    num_computed = plan.max_depth + size
    tokens = jnp.zeros((batch, plan.topology.num_nodes), jnp.int32)
    lanes: list[Array] = []
    for group in plan.groups:
        num_blocks = len(group.paths)
        if num_blocks:
            fed = said.reshape(batch, -1, size, width)[:, group.above]
            above = jnp.maximum(tokens[:, group.paths], 0)
            kept = memory[:, group.above]
            streams, every = layer.advance(
                own, target, above.reshape(-1, size), fed.reshape(-1, size, width),
                kept.reshape(-1, *kept.shape[2:]),
            )  # fmt: skip
            memory = every[:, -1].reshape(kept.shape)
            lanes.append(streams.reshape(batch, -1, width))
            query = _drafted(group, jnp.concatenate(lanes, 1), root, size)
            said = layer.apply(own, query, state.cache)[0][:, -num_blocks * size :]
            num_asked += query.tokens.shape[1]
            num_computed += query.tokens.shape[1]
        most = int(group.nth.max()) + 1
        best = heads.best_tokens(head, said, most, plan.sampling)
        tokens = tokens.at[:, group.nodes].set(best[:, group.law, group.nth])
    parents = jnp.asarray(plan.topology.parents, jnp.int32)
    cost = DraftCost(
        num_calls=jnp.full_like(root, len(plan.groups)),
        num_tokens=num_asked,
        num_tokens_computed=jnp.full_like(root, num_computed),
    )
    return Draft(tokens, jnp.broadcast_to(parents, tokens.shape), cost=cost), state


def _drafted(group: Group, lanes: Array, root: Array, size: int) -> Query:
    """Blocks of drafted lanes [B, W, E], unstored behind the root."""
    shape = lanes.shape[:2]
    place = root[:, None] + jnp.asarray(group.place, jnp.int32)[None]
    start = jnp.minimum(root, 1) + size - 1
    visible = Visibility(
        jnp.broadcast_to(start[:, None], shape),
        jnp.broadcast_to(root[:, None] + size, shape),
        among=jnp.broadcast_to(jnp.asarray(group.seen), (*shape, shape[1])),
    )
    return Query(jnp.zeros_like(place), place, None, visible, lanes)


def _groups(topology: trees.Topology, size: int) -> list[Group]:
    parents, depths = topology.parents, topology.depths

    def above(node: int, depth: int) -> int:
        """The ancestor at a depth, or the node itself; -1 is the root."""
        while node >= 0 and depths[node] > depth:
            node = parents[node]
        return node

    found: list[Group] = []
    bases, known = [-1], {}  # blocks by the node they end at: their lanes
    for first in range(0, topology.max_depth, size):
        nodes = [n for n, d in enumerate(depths) if first < d <= first + size]
        own = sorted({above(node, first) for node in nodes})
        if first:
            for base in own:
                start = len(known) * size
                known[base] = range(start, start + size)
        lanes = len(known) * size
        seen, place = np.zeros((lanes, lanes), bool), np.zeros(lanes, int)
        for base, mine in known.items():
            place[mine] = depths[base] - size + 1 + np.arange(size)
            for end in range(size, depths[base] + 1, size):
                seen[np.ix_(mine, known[above(base, end)])] = True
        fed = own if first else []
        found.append(
            Group(
                nodes=np.array(nodes),
                law=np.array(
                    [own.index(above(n, first)) * size + depths[n] - first - 1
                     for n in nodes]
                ),
                nth=np.array([parents[:n].count(parents[n]) for n in nodes]),
                paths=np.array(
                    [[above(u, first - size + 1 + i) for i in range(size)] for u in fed]
                ).reshape(len(fed), size).astype(int),
                above=np.array(
                    [bases.index(above(u, first - size)) for u in fed]
                ).astype(int),
                seen=seen,
                place=place,
            )
        )  # fmt: skip
        bases = own
    return found
