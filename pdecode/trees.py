"""Token trees as arrays: parents, depths, ancestors, children.

Lane 0 of a verifying call is the root and node n is lane n + 1; `parents` here are
lanes minus one, so the root's children have parent -1. Parents come before children.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
    "Growth",
    "Topology",
    "ancestors",
    "beam",
    "best",
    "chain",
    "children",
    "choices",
    "deepened",
    "deepest",
    "depths",
    "expand",
    "expected",
    "greedy",
    "grow",
    "path_to",
    "priced",
    "rerank",
    "seed",
    "sized",
]


class Topology(NamedTuple):
    """A static tree over N nodes, hashable: what a drafter with a fixed shape uses."""

    parents: tuple[int, ...]
    depths: tuple[int, ...]  # 1 for a child of the root

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @property
    def max_depth(self) -> int:
        return max(self.depths, default=0)

    @property
    def max_children(self) -> int:
        return max((self.parents.count(p) for p in set(self.parents)), default=0)


def expand(branching: tuple[int, ...]) -> Topology:
    """The tree in which every node of depth d has branching[d] children, by level.

    (1, 1, 1) is a chain of three; (2, 2) has six nodes. ValueError if a level is empty.
    """
    if any(width < 1 for width in branching):
        raise ValueError(f"{branching=} must hold positive widths")
    parents: list[int] = []
    depths: list[int] = []
    level = [-1]
    for depth, width in enumerate(branching, 1):
        below = []
        for parent in level:
            for _ in range(width):
                below.append(len(parents))
                parents.append(parent)
                depths.append(depth)
        level = below
    return Topology(tuple(parents), tuple(depths))


def chain(length: int) -> Topology:
    """A single path of `length` nodes."""
    return expand((1,) * length)


def choices(paths: Sequence[Sequence[int]]) -> Topology:
    """The tree of `paths`: (1, 0) is the first child of the root's second child.

    Nodes come by depth, then in lexicographic order. ValueError if a path lacks its
    parent or an elder sibling, or stands twice.
    """
    ordered = sorted({tuple(path) for path in paths}, key=lambda p: (len(p), p))
    if len(ordered) != len(paths):
        raise ValueError(f"{len(paths)} paths, of which {len(ordered)} are different")
    place: dict[tuple[int, ...], int] = {(): -1}
    for path in ordered:
        elder = (*path[:-1], path[-1] - 1) if path and path[-1] > 0 else path[:-1]
        if not path or min(path) < 0 or not {path[:-1], elder} <= place.keys():
            raise ValueError(f"path {path} needs its parent and elder siblings")
        place[path] = len(place) - 1
    parents = tuple(place[path[:-1]] for path in ordered)
    return Topology(parents, tuple(len(path) for path in ordered))


def greedy(accuracies: Sequence[Sequence[float]], num_nodes: int) -> Topology:
    """`num_nodes` nodes, each time the one most likely to be accepted.

    accuracies[d][i] is how often the i-th guess for depth d + 1 is right; a node counts
    the product along its path, as if depths were independent (Medusa, Cai et al., 2024,
    arXiv:2401.10774). ValueError if the tree cannot have that many.
    """
    found: list[tuple[int, ...]] = []
    # (less the product along the path, path, product above it)
    frontier: list[tuple[float, tuple[int, ...], float]]
    frontier = [(-accuracies[0][0], (0,), 1.0)]
    while frontier and len(found) < num_nodes:
        negative, path, above = heapq.heappop(frontier)
        found.append(path)
        depth, nth = len(path), path[-1] + 1
        if nth < len(accuracies[depth - 1]):
            chance = above * accuracies[depth - 1][nth]
            heapq.heappush(frontier, (-chance, (*path[:-1], nth), above))
        if depth < len(accuracies):
            chance = -negative * accuracies[depth][0]
            heapq.heappush(frontier, (-chance, (*path, 0), -negative))
    if len(found) < num_nodes:
        raise ValueError(f"{num_nodes=}, but these accuracies allow {len(found)}")
    return choices(found)


def best(rates: Sequence[float], num_nodes: int, max_depth: int) -> Topology:
    """The tree of `num_nodes` and at most `max_depth` levels that accepts most.

    rates[i] is the probability that a node's child i is the one accepted, whatever the
    node (Sequoia, Chen et al., 2024, arXiv:2402.12374, its dynamic program). No order
    among the rates is assumed. ValueError if no such tree exists.
    """
    if num_nodes < 1 or max_depth < 1 or not len(rates):
        raise ValueError(f"{num_nodes=}, {max_depth=}, {len(rates)} rates: at least 1")
    most, taken = _forests(rates, num_nodes, max_depth)
    if not np.isfinite(most[-1][num_nodes]):
        raise ValueError(f"no tree of {num_nodes=} has {max_depth=} and {len(rates)=}")
    return _of_picks(taken, num_nodes, max_depth)


def _forests(rates: Sequence[float], num_nodes: int, max_depth: int):
    """(most [1 + D] of [1 + N], taken) of all sizes and depths up to these.

    most[depth][size]: accepted of a forest of children with `size` nodes below one
    node; -inf: there is none. taken[depth - 1][nth][size]: nodes of child nth on.
    """
    # Its first child takes s nodes, its younger siblings the rest.
    most = [np.where(np.arange(num_nodes + 1) == 0, 0.0, -np.inf)]
    taken = []
    for _ in range(max_depth):
        below = np.concatenate([[-np.inf], 1 + most[-1][:-1]])
        forest, picks = most[0], []
        for rate in reversed(rates):
            own = np.where(np.isfinite(below), rate * np.maximum(below, 0), -np.inf)
            sums = [own[: n + 1] + forest[n::-1] for n in range(num_nodes + 1)]
            picks.append(np.array([int(np.argmax(each)) for each in sums]))
            forest = np.array([0.0, *(each.max() for each in sums[1:])])
        most.append(forest)
        taken.append(picks[::-1])
    return most, taken


def _of_picks(taken, num_nodes: int, max_depth: int) -> Topology:
    """The tree of `num_nodes` that `_forests` found."""

    def paths(size, depth, above):
        for nth in range(len(taken[0])):
            if size == 0:
                return
            own = int(taken[depth - 1][nth][size])
            yield (*above, nth)
            yield from paths(own - 1, depth - 1, (*above, nth))
            size -= own

    return choices(list(paths(num_nodes, max_depth, ())))


def expected(topology: Topology, rates: Sequence[float]) -> float:
    """Mean accepted length of `topology` where child i is accepted with rates[i]."""
    chance = []
    for node, parent in enumerate(topology.parents):
        nth = topology.parents[:node].count(parent)
        above = chance[parent] if parent >= 0 else 1.0
        chance.append(above * (rates[nth] if nth < len(rates) else 0.0))
    return float(sum(chance))


def sized(
    rates: Sequence[float],
    call_cost: dict[int, float],
    draft_cost: float,
    *,
    max_depth: int,
) -> tuple[Topology, float]:
    """The tree with the most tokens a second, and those, from measured costs.

    `call_cost` is the time of a target call by its number of lanes (between them a
    straight line; 1 must be there), `draft_cost` that of a drafter's call, one a level.
    Trees have up to max(call_cost) - 1 nodes. An empty tree is plain decoding.
    """
    if 1 not in call_cost:
        raise ValueError("call_cost needs the time of a call of 1 lane")
    lanes = sorted(call_cost)
    found, speed = (0, 0), 1 / call_cost[1]
    most, taken = _forests(rates, lanes[-1] - 1, max_depth)
    for num_nodes in range(1, lanes[-1]):
        call = float(np.interp(num_nodes + 1, lanes, [call_cost[n] for n in lanes]))
        for depth in range(1, min(max_depth, num_nodes) + 1):
            own = (1 + most[depth][num_nodes]) / (call + depth * draft_cost)
            if own > speed:
                found, speed = (num_nodes, depth), own
    return _of_picks(taken, *found) if found[0] else Topology((), ()), float(speed)


def priced(
    costs: Sequence[float], num_nodes: int, widths: Sequence[int] = (1, 2, 4, 8, 16, 32)
) -> dict[int, float]:
    """`call_cost` of `sized` for trees of at most `num_nodes`: costs at `widths` lanes.

    Beyond the last of `widths` nothing is known: trees stay below it.
    ValueError for another number of costs than widths.
    """
    if len(costs) != len(widths):
        raise ValueError(f"{len(costs)} costs of calls of {widths} lanes: give each")
    known = {w: float(c) for w, c in zip(widths, costs) if w <= num_nodes + 1}
    last = min(num_nodes + 1, widths[-1])
    return {**known, last: float(np.interp(last, widths, costs))}


def ancestors(parents: Array) -> Array:
    """bool [B, 1 + N, 1 + N]: lane q descends from lane k or is it.

    Every node descends from the root, whatever its parent: an absent node (parent below
    -1 is clipped) then still sees a valid context.
    """
    num_lanes = parents.shape[1] + 1
    lanes = jnp.arange(num_lanes)
    # The root is its own parent.
    parent_lane = jnp.pad(jnp.maximum(parents, -1) + 1, ((0, 0), (1, 0)))
    reach = (parent_lane[..., None] == lanes[None, None]) | jnp.eye(
        num_lanes, dtype=bool
    )[None]
    # Squaring doubles the distance covered: log2(depth) products in place of a walk.
    for _ in range(int(np.ceil(np.log2(max(num_lanes - 1, 1))))):
        steps = reach.astype(jnp.float32)
        reach = jnp.matmul(steps, steps) > 0
    return reach


def depths(reach: Array) -> Array:
    """int32 [B, 1 + N] depth of each lane, the root's 0, from `ancestors`."""
    return reach.sum(-1, dtype=jnp.int32) - 1


def path_to(reach: Array, depth: Array, leaf: Array, max_depth: int) -> Array:
    """Lanes int32 [B, D] from the root's child to `leaf` [B]; then `leaf` repeats.

    For the tree 0 -> 1 -> 3, 0 -> 2 and leaf 3, D = 3: [1, 3, 3].
    """
    on_path = jnp.take_along_axis(reach, leaf[:, None, None], 1)[:, 0]  # [B, 1 + N]
    wanted = jnp.arange(1, max_depth + 1)[None]
    lanes = jnp.arange(depth.shape[1], dtype=jnp.int32)[None, None]
    hit = on_path[:, None] & (depth[:, None] == wanted[..., None])  # [B, D, 1 + N]
    # One lane a depth at most; a plain maximum vectorises where an argmax does not.
    lane = jnp.where(hit, lanes, 0).max(-1)
    return jnp.where(lane > 0, lane, leaf[:, None])


def deepest(hit: Array, reach: Array, depth: Array) -> Array:
    """int32 [B]: the deepest lane that only nodes in `hit` (bool [B, N]) lead to.

    It is the end of the longest accepted path; of equally long ones the first lane
    counts, and the root where no child of it hits.
    """
    hit = jnp.pad(hit, ((0, 0), (1, 0)), constant_values=True)
    is_open = (hit[:, None] | ~reach).all(-1)
    return jnp.argmax(jnp.where(is_open, depth, -1), 1).astype(jnp.int32)


def children(parents: Array, lane: Array, max_children: int) -> Array:
    """Nodes int32 [max_children] whose parent is `lane` - 1, in order; -1 pads.

    One row: `parents` [N], `lane` a scalar.
    """
    is_child = parents == lane - 1
    order = jnp.argsort(~is_child, stable=True)[:max_children].astype(jnp.int32)
    found = jnp.where(is_child[order], order, -1)
    return jnp.pad(found, (0, max_children - found.shape[0]), constant_values=-1)


class Growth(NamedTuple):
    """Candidates of a tree that grows level by level, a beam of K nodes a level.

    Candidate (d, r, c) is child c of beam node r of the level above and has the flat id
    d * K * K + r * K + c; the root's children are those of row 0.
    """

    tokens: Array  # int32 [B, D, K, K]
    scores: Array  # float32 [B, D, K, K]  log-probability of the path; -inf: none
    beam: Array  # int32 [B, D, K]  flat ids of the level's beam, by score

    @property
    def width(self) -> int:
        return self.beam.shape[2]


def seed(batch: int, max_depth: int, width: int) -> Growth:
    """No candidate yet."""
    shape = (batch, max_depth, width)
    return Growth(
        jnp.zeros((*shape, width), jnp.int32),
        jnp.full((*shape, width), -jnp.inf, jnp.float32),
        jnp.zeros(shape, jnp.int32),
    )


def deepened(growth: Growth) -> Growth:
    """`growth` with room for a level more."""
    beam = ((0, 0), (0, 1), (0, 0))
    return Growth(
        jnp.pad(growth.tokens, (*beam, (0, 0))),
        jnp.pad(growth.scores, (*beam, (0, 0)), constant_values=-jnp.inf),
        jnp.pad(growth.beam, beam),
    )


def grow(
    growth: Growth, level: Array | int, top_ids: Array, log_probs: Array, more: Array
) -> Growth:
    """`growth` with a level below the beam of the level above, and that level's beam.

    `top_ids` and `log_probs` [B, K, K] are the best children of each beam node, falling
    in log-probability; rows where `more` (bool [B]) is false get no candidate.
    """
    width = growth.width
    batch = growth.tokens.shape[0]
    is_root = (jnp.arange(width) == 0)[None]
    above = jnp.take_along_axis(
        growth.scores.reshape(batch, -1), growth.beam[:, level - 1], 1
    )
    above = jnp.where(level == 0, jnp.where(is_root, 0.0, -jnp.inf), above)
    # Banned ids have a logit of -1e30: no candidates.
    own = jnp.where(log_probs > -1e20, log_probs, -jnp.inf).astype(jnp.float32)
    scores = jnp.where(more[:, None, None], above[..., None] + own, -jnp.inf)
    # Stable: of equal scores the elder comes first.
    _, kept = jax.lax.top_k(scores.reshape(batch, -1), width)
    return Growth(
        growth.tokens.at[:, level].set(top_ids),
        growth.scores.at[:, level].set(scores),
        growth.beam.at[:, level].set(level * width**2 + kept.astype(jnp.int32)),
    )


def beam(growth: Growth) -> tuple[Array, Array]:
    """Tokens and parents int32 [B, D * K] of the beams as nodes of one tree."""
    batch, width = growth.beam.shape[0], growth.width
    flat = growth.beam.reshape(batch, -1)
    tokens = jnp.take_along_axis(growth.tokens.reshape(batch, -1), flat, 1)
    level, row = flat // width**2, flat % width**2 // width
    return tokens, jnp.where(level == 0, -1, (level - 1) * width + row)


def rerank(growth: Growth, num_nodes: int) -> tuple[Array, Array]:
    """Tokens and parents int32 [B, N] of the N best candidates of all levels.

    Scores never rise along a path and equal ones keep the elder first, so every node's
    parent is among them. Where there are fewer candidates, the rest have token -1.
    """
    batch, _, width = growth.beam.shape
    scores = growth.scores.reshape(batch, -1)
    best_scores, chosen = jax.lax.top_k(scores, num_nodes)
    beyond = scores.shape[1]
    ids = jnp.sort(jnp.where(best_scores > -jnp.inf, chosen, beyond), 1)
    is_real = ids < beyond
    ids = jnp.minimum(ids, beyond - 1).astype(jnp.int32)
    tokens = jnp.take_along_axis(growth.tokens.reshape(batch, -1), ids, 1)
    level, row = ids // width**2, ids % width**2 // width
    above = jnp.maximum(level - 1, 0) * width + row
    parent_id = jnp.take_along_axis(growth.beam.reshape(batch, -1), above, 1)
    parents = jnp.argmax(ids[:, None] == parent_id[..., None], -1).astype(jnp.int32)
    parents = jnp.where(is_real & (level > 0), parents, -1)
    return jnp.where(is_real, tokens, -1), parents
