"""Drafts from what the target last thought might follow each token.

A table of one row of best successors a token, written over by every call's
predictions, those of refused nodes too.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Draft, Drafter, Model, Prefix, Round, Sampling
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["Template", "recycling", "template", "written"]


class Template(NamedTuple):
    """A static tree of ranks: node n is successor number ranks[n] of its parent."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    depths: tuple[int, ...]


def template(widths: tuple[int, ...], num_top: int) -> Template:
    """The tree with widths[d] nodes at depth d + 1 and the smallest sums of ranks.

    Raises ValueError if a level has more nodes than the one above it has successors.
    """
    parents: list[int] = []
    ranks: list[int] = []
    depths: list[int] = []
    level = [(0, -1)]  # sum of ranks on the path, node
    for depth, width in enumerate(widths, 1):
        room = len(level) * num_top
        if not 1 <= width <= room:
            raise ValueError(
                f"{widths=}: level {depth} has {width} nodes, but the level above has "
                f"{room} successors at num_top={num_top}"
            )
        below = sorted(
            (total + rank, node, rank)
            for total, node in level
            for rank in range(num_top)
        )
        level = []
        for total, node, rank in below[:width]:
            level.append((total, len(parents)))
            parents.append(node)
            ranks.append(rank)
            depths.append(depth)
    return Template(tuple(parents), tuple(ranks), tuple(depths))


def recycling(model: Model, tree: Template, num_top: int) -> Drafter:
    """Drafter that fills `tree` from the successors last predicted for each token.

    The table int32 [B, V, num_top] is a row's own. It begins with what the prefill
    predicts at the prompt's tokens; of a token that occurs twice the last counts.
    """
    if num_top > model.vocab_size:
        raise ValueError(f"{num_top=} exceeds the vocabulary, {model.vocab_size}")
    levels = [
        np.flatnonzero(np.array(tree.depths) == depth)
        for depth in range(1, max(tree.depths) + 1)
    ]
    parents, ranks = np.array(tree.parents), np.array(tree.ranks)

    def init(params, keys, prompt, prefix: Prefix, output):
        del keys
        shape = (prefix.length.shape[0], model.vocab_size, num_top)
        table = jnp.full(shape, -1, jnp.int32)
        if output is None:
            return table
        width = output.hidden.shape[1]
        found = vocab_head.statistics(
            model.head(params["model"]),
            output.hidden,
            (f"top:{num_top}",),
            without_mask(model, Sampling()),
        )
        place = jnp.arange(width, dtype=jnp.int32)[None]
        is_text = place < prompt.lengths[:, None] - 1
        tokens = jnp.where(is_text, prompt.tokens[:, :width], -1)
        return written(table, tokens, found.top_ids)

    def propose(params, keys, table: Array, prefix: Prefix):
        del params, keys
        batch = jnp.arange(table.shape[0])[:, None]
        root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
        # Level by level, which is the order of the nodes; node n is column n + 1.
        tokens = root
        for level in levels:
            parent = tokens[:, parents[level] + 1]
            token = table[batch, jnp.maximum(parent, 0), ranks[level][None]]
            tokens = jnp.concatenate([tokens, jnp.where(parent >= 0, token, -1)], 1)
        tokens = tokens[:, 1:]
        given = jnp.broadcast_to(jnp.asarray(parents, jnp.int32), tokens.shape)
        return Draft(tokens=tokens, parents=given), table

    def observe(params, keys, table: Array, round: Round):
        del params, keys
        prefix = round.prefix
        root = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)
        tokens = jnp.concatenate([root, round.draft.tokens], 1)
        # Another drafter's nodes may be lanes of the call too, and a rule's top ids.
        top = round.prediction.top_ids[:, : tokens.shape[1], :num_top]
        return written(table, tokens, top)

    return Drafter(
        num_nodes=len(parents),
        max_depth=len(levels),
        init=init,
        propose=propose,
        observe=observe,
        wants=(f"top:{num_top}",),
    )


def written(table: Array, tokens: Array, top: Array) -> Array:
    """`table` [B, V, K] with `top` [B, N, K] at `tokens` [B, N]; the last one wins.

    Tokens below zero write nothing. A scatter at equal places has no order of its own.
    """
    batch, vocab = table.shape[:2]
    row = jnp.arange(batch)[:, None]
    lane = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    at = jnp.where(tokens >= 0, tokens, vocab)
    last = jnp.full((batch, vocab), -1, jnp.int32)
    last = last.at[row, at].max(jnp.broadcast_to(lane, at.shape), mode="drop")
    is_last = jnp.take_along_axis(last, jnp.minimum(at, vocab - 1), 1) == lane
    at = jnp.where(is_last, at, vocab)
    return table.at[row, at].set(top, mode="drop")
