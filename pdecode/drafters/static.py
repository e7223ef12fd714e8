"""A static tree level by level: what its levels are, and their nodes as one draft."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import trees
from pdecode.contracts import Draft, DraftCost, Query, Visibility

__all__ = ["Level", "in_order", "levels", "tree_query"]


class Level(NamedTuple):
    """One depth of a static tree, as numpy arrays."""

    depth: int
    nodes: np.ndarray  # int [n]
    parent: np.ndarray  # int [n]  place of each node's parent in the level above
    nth: np.ndarray  # int [n]  which child of its parent
    above: np.ndarray  # int [m]  nodes of smaller depth
    paths: np.ndarray  # int [p, depth - 1]  places in `above` of the parents' paths


def levels(topology: trees.Topology) -> list[Level]:
    """The levels of a static tree, the root's children first."""
    parents, depths = np.array(topology.parents), np.array(topology.depths)
    found, before = [], np.array([-1])
    for depth in range(1, topology.max_depth + 1):
        nodes = np.flatnonzero(depths == depth)
        nth = [int((parents[:node] == parents[node]).sum()) for node in nodes]
        parent = np.searchsorted(before, parents[nodes])
        above = np.flatnonzero(depths < depth)
        # Level by level, as they are drawn: the last level has the last lanes.
        above = above[np.argsort(depths[above], kind="stable")]
        place = {int(node): i for i, node in enumerate(above)}
        paths = [_path(place, parents, int(node)) for node in before]
        paths = np.array(paths, int).reshape(len(before), depth - 1)
        found.append(Level(depth, nodes, parent, np.array(nth), above, paths))
        before = nodes
    return found


def in_order(
    topology: trees.Topology,
    levels: list[Level],
    tokens: list[Array],
    laws: Sequence[Array | None] = (),
    cost: DraftCost | None = None,
) -> Draft:
    """The draft whose nodes were made level by level, in the topology's own order.

    `tokens` and `laws` hold [B, n] and [B, n, V] a level; laws of None are no q.
    """
    order = np.argsort(np.concatenate([level.nodes for level in levels]))
    every = jnp.concatenate(tokens, 1)[:, order]
    given = [law for law in laws if law is not None]
    parents = jnp.asarray(topology.parents, jnp.int32)
    return Draft(
        tokens=every,
        parents=jnp.broadcast_to(parents, every.shape),
        q=jnp.concatenate(given, 1)[:, order] if given else None,
        cost=cost,
    )


def tree_query(
    above: Array, root: Array, level: Level, topology: trees.Topology
) -> Query:
    """All nodes above `level` (tokens [B, m]) as unstored lanes behind the prefix."""
    batch, size = above.shape
    depths = np.array(topology.depths)[level.above]
    among = _reach(topology)[np.ix_(level.above, level.above)]
    return Query(
        tokens=jnp.maximum(above, 0),
        positions=root[:, None] + jnp.asarray(depths, jnp.int32)[None],
        slots=None,
        visible=Visibility(
            start=jnp.zeros((batch, size), jnp.int32),
            stop=jnp.broadcast_to(root[:, None] + 1, (batch, size)),
            among=jnp.broadcast_to(among, (batch, size, size)),
        ),
    )


def _path(place: dict[int, int], parents: np.ndarray, node: int) -> list[int]:
    """Places of the nodes from the root's child to `node`; [] for the root."""
    path = []
    while node >= 0:
        path.append(place[int(node)])
        node = int(parents[node])
    return path[::-1]


def _reach(topology: trees.Topology) -> np.ndarray:
    """bool [N, N]: node q descends from node k or is it."""
    reach = np.eye(topology.num_nodes, dtype=bool)
    for node, parent in enumerate(topology.parents):
        if parent >= 0:
            reach[node] |= reach[parent]
    return reach
