"""Trees of cells laid out depth by depth: which nodes exist, and what they may be."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Lens, Row, View
from pdecode.sampling import BANNED

__all__ = ["Tree", "exists", "lens", "tree"]


class Tree(NamedTuple):
    """A full tree of nodes, numbered depth by depth from the end of the prompt.

    A node of the first depth exists; any other does if its parent is `split_id`.
    """

    sizes: tuple[int, ...]  # nodes of each depth
    parent: np.ndarray  # int32 [N]  -1: of the first depth
    depth: np.ndarray  # int32 [N]
    split_id: int
    empty_id: int


def tree(total: int, depths: int, branching: int, split_id: int, empty_id: int) -> Tree:
    """The Tree of `total` nodes in all. ValueError if no number of roots gives that.

    Roots 2, branching 2, depths 3:   0 1 | 2 3 4 5 | 6 7 8 9 10 11 12 13
                            parents  -1-1 | 0 0 1 1 | 2 2 3 3  4  4  5  5
    """
    each = [branching**depth for depth in range(depths)]
    roots, rest = divmod(total, sum(each))
    if rest or split_id == empty_id:
        raise ValueError(
            f"{depths} depths with {branching} children a node have a multiple of "
            f"{sum(each)} nodes, but there are {total}; {split_id=} and {empty_id=} "
            "must differ"
        )
    sizes = [roots * count for count in each]
    first = np.cumsum([0, *sizes])
    parent = [np.full(roots, -1)]
    for depth in range(1, depths):
        parent.append(first[depth - 1] + np.arange(sizes[depth]) // branching)
    depth = np.repeat(np.arange(depths), sizes)
    return Tree(
        tuple(sizes), np.concatenate(parent).astype(np.int32), depth.astype(np.int32),
        split_id, empty_id,
    )  # fmt: skip


def exists(tree: Tree, row: Row) -> Array:
    """bool [W]: the lanes whose nodes exist, as far as the text says."""
    place = jnp.clip(row.positions - row.prompt_end, 0, len(tree.parent) - 1)
    parent = jnp.asarray(tree.parent)[place]
    above = jnp.where(parent < 0, 0, parent + row.prompt_end)
    is_split = (row.tokens[above] == tree.split_id) & ~row.masked[above]
    # Behind the row's end there are lanes too, where other rows are longer.
    return ((parent < 0) | is_split) & (row.positions < row.end)


def lens(tree: Tree, fade: Array | float = 0.0) -> Lens:
    """Nodes that do not exist are empty; within a depth the law gets colder.

    Where a share u of a depth's nodes is open the temperature is 1 - fade * i, with
    cos(pi / 2 i) = u: i is how far a cosine schedule is. It is at least 0.01.
    """
    table, depths = jnp.asarray(tree.parent), jnp.asarray(tree.depth)

    def apply(params, view: View, logits: Array, memory):
        del params
        node = jnp.clip(view.position - view.prompt_end, 0, len(tree.parent) - 1)

        def is_there(parent):
            above = jnp.where(parent < 0, 0, parent + view.prompt_end)
            split = view.known[above] & (view.tokens[above] == tree.split_id)
            return (parent < 0) | split

        place = view.prompt_end + jnp.arange(len(tree.parent))
        known = view.known.at[place].get(mode="fill", fill_value=True)
        here = (depths == depths[node]) & is_there(table)
        is_open = (here & ~known).sum() / jnp.maximum(here.sum(), 1)
        passed = jnp.arccos(jnp.clip(is_open, 0, 1)) * 2 / jnp.pi
        warmth = jnp.maximum(1 - fade * passed, 0.01)
        only = jnp.arange(logits.shape[0]) == tree.empty_id
        empty = jnp.where(only, 0.0, BANNED).astype(logits.dtype)
        cooled = jnp.where(logits > BANNED, logits / warmth, BANNED)
        return jnp.where(is_there(table[node]), cooled, empty), memory

    return Lens(apply)
