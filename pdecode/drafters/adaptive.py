"""A tree out of a corpus's trigrams, raised where the text itself has them.

ADED (Liu et al., 2024, arXiv:2407.12021) searches the table with a Monte Carlo tree;
here the likeliest nodes by their paths are taken best first.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, Prefix
from pdecode.data.trigrams import Followers, Trigrams
from pdecode.drafters import ignore

__all__ = ["MOST", "Tree", "adaptive", "grown", "looked_up", "raised"]

MOST = 3.0  # a weight is raised no further


class Tree(NamedTuple):
    """A tree that grows node by node: every offer, and which of them are in it."""

    tokens: Array  # int32 [C]  offers, K a node taken
    parents: Array  # int32 [C]  node; -1: the root
    scores: Array  # float32 [C]  log of the path's product; -inf: none, or taken
    nodes: Array  # int32 [N]  offers in the order taken
    depths: Array  # int32 [N]


def adaptive(
    table: Trigrams,
    num_nodes: int,
    *,
    max_depth: int,
    window: int,
    bump: Any,
) -> Drafter:
    """Drafter of the `num_nodes` likeliest nodes within `max_depth` by the table.

    Before each draft the trigrams in the last `window` tokens of the text gain `bump`
    where the corpus has them too, up to MOST. A path's chance is the product of its
    weights' shares. The state is what a row gained, float32 [B, S, K].
    """
    if not 1 <= max_depth <= num_nodes:
        raise ValueError(f"{max_depth=} must lie in [1, {num_nodes}], the nodes")

    def init(params, keys, prompt, prefix: Prefix, output):
        del keys, prompt, output
        shape = prefix.length.shape[0], *params["table"].weights.shape
        return jnp.zeros(shape, jnp.float32)

    def propose(params, keys, more: Array, prefix: Prefix):
        del keys
        known = Followers(*map(jnp.asarray, params["table"]))
        more = raised(known, more, prefix, window, bump)
        tokens, parents = jax.vmap(
            lambda more, text, size: grown(
                known, more, text, size, table.num_kept, num_nodes, max_depth
            )
        )(more, prefix.tokens, prefix.length)
        return Draft(tokens=tokens, parents=parents), more

    return Drafter(num_nodes, max_depth, init, propose, ignore)


def raised(
    known: Followers, more: Array, prefix: Prefix, window: int, bump: Any
) -> Array:
    """`more` with what the trigrams in the last `window` tokens gain."""
    row = jnp.arange(more.shape[0])
    size = prefix.tokens.shape[1]
    # Where the first of them ends.
    first = jnp.maximum(prefix.length - window, 0) + 2

    def note(nth, more):
        place = first + nth
        at = jnp.clip(place[:, None] + jnp.arange(-2, 1)[None], 0, size - 1)
        three = jnp.take_along_axis(prefix.tokens, at, 1)
        slot, is_known = looked_up(known, three[:, 0], three[:, 1])
        same = known.ids[slot] == three[:, 2:]
        is_there = is_known & (place < prefix.length)
        gain = jnp.where(same & is_there[:, None], bump, 0.0)
        room = MOST - known.weights[slot] - more[row, slot]
        return more.at[row, slot].add(jnp.clip(gain, 0.0, jnp.maximum(room, 0.0)))

    return jax.lax.fori_loop(0, max(window - 2, 0), note, more)


def looked_up(known: Followers, first: Array, second: Array) -> tuple[Array, Array]:
    """Row of the table for pairs of ids, and if there is one."""
    key = (first.astype(jnp.uint32) << 16) + second.astype(jnp.uint32)
    slot = jnp.searchsorted(known.keys, key).astype(jnp.int32)
    slot = jnp.minimum(slot, known.keys.shape[0] - 1)
    return slot, known.keys[slot] == key


def grown(
    known: Followers, more: Array, text: Array, size: Array, num_kept: int,
    num_nodes: int, max_depth: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Tokens and parents int32 [N] of one row's tree, best first; -1: none."""
    last = text[size - 1]
    before = jnp.where(size >= 2, text[jnp.maximum(size - 2, 0)], -1)

    def offers(first: Array, second: Array, score: Array, depth: Array):
        slot, is_known = looked_up(known, first, second)
        weight = known.weights[slot] + more[slot]
        share = weight / jnp.maximum(weight.sum(), 1e-9)
        is_real = is_known & (known.ids[slot] >= 0) & (first >= 0) & (weight > 0)
        is_real &= depth < max_depth
        logs = jnp.log(jnp.where(is_real, share, 1.0))
        return known.ids[slot], jnp.where(is_real, score + logs, -jnp.inf)

    room = num_kept * (num_nodes + 1)
    zero = jnp.zeros((), jnp.int32)
    tokens, scores = offers(before, last, jnp.zeros(()), zero)
    pad = (0, room - num_kept)
    begun = Tree(
        tokens=jnp.pad(tokens, pad, constant_values=-1),
        parents=jnp.full(room, -1, jnp.int32),
        scores=jnp.pad(scores, pad, constant_values=-jnp.inf),
        nodes=jnp.full(num_nodes, -1, jnp.int32),
        depths=jnp.zeros(num_nodes, jnp.int32),
    )

    def take(node: Array, tree: Tree) -> Tree:
        best = jnp.argmax(tree.scores).astype(jnp.int32)
        score, parent = tree.scores[best], tree.parents[best]
        is_real = score > -jnp.inf
        above = jnp.where(parent >= 0, tree.tokens[tree.nodes[parent]], last)
        depth = jnp.where(parent >= 0, tree.depths[parent], 0) + 1
        found, scores = offers(above, tree.tokens[best], score, depth)
        first = num_kept * (node + 1)

        def put(whole, new):
            return jax.lax.dynamic_update_slice(
                whole, new.astype(whole.dtype), (first,)
            )

        scores = jnp.where(is_real, scores, -jnp.inf)
        return Tree(
            tokens=put(tree.tokens, found),
            parents=put(tree.parents, jnp.full(num_kept, node)),
            scores=put(tree.scores.at[best].set(-jnp.inf), scores),
            nodes=tree.nodes.at[node].set(jnp.where(is_real, best, -1)),
            depths=tree.depths.at[node].set(depth),
        )

    tree = jax.lax.fori_loop(0, num_nodes, take, begun)
    is_real = tree.nodes >= 0
    chosen = jnp.maximum(tree.nodes, 0)
    return (
        jnp.where(is_real, tree.tokens[chosen], -1),
        jnp.where(is_real, tree.parents[chosen], -1),
    )
