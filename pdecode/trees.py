"""Token trees as arrays: parents, depths, ancestors, children.

Lane 0 of a verifying call is the root and node n is lane n + 1; `parents` here are
lanes minus one, so the root's children have parent -1. Parents come before children.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


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
    return jnp.where(is_child[order], order, -1)
