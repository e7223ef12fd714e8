"""Drafts from what the target predicted in the same contexts before, on average.

Tables of one row map the last few tokens to the likeliest next ones. They are hashed,
one slot a context and the newest wins: a lost or mistaken entry costs acceptance and
nothing else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Draft, Drafter, Model, Prefix, Round, Sampling
from pdecode.drafters.recycling import Template
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["Averages", "Plan", "averaged", "looked_up", "visited"]


class Averages(NamedTuple):
    """Mean laws by context; the first axis after B is the context's length."""

    mark: Array  # uint32 [B, C, S]  which context has the slot
    count: Array  # int32 [B, C, S]  how often it was seen; 0: the slot is free
    ids: Array  # int32 [B, C, S, K]  likeliest first; -1: none
    probs: Array  # float32 [B, C, S, K]


class Plan(NamedTuple):
    """What the drafter is made of."""

    model: Model
    tree: Template
    contexts: tuple[int, ...]  # lengths, the longest first
    num_top: int  # K
    num_slots: int  # S


def averaged(
    model: Model,
    tree: Template,
    num_top: int,
    *,
    contexts: tuple[int, ...] = (4, 3, 2),
    num_slots: int = 1024,
) -> Drafter:
    """Drafter that fills `tree` from the longest context that was seen before.

    Rank r of a node is the r-th likeliest token after the last tokens of its own path.
    The mean is over all visits, of the `num_top` likeliest each time.
    """
    if num_top > model.vocab_size:
        raise ValueError(f"{num_top=} exceeds the vocabulary, {model.vocab_size}")
    if list(contexts) != sorted(set(contexts), reverse=True):
        raise ValueError(f"{contexts=} must fall: the longest is tried first")
    plan = Plan(model, tree, contexts, num_top, num_slots)
    return Drafter(
        num_nodes=len(tree.parents),
        max_depth=max(tree.depths),
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
        wants=(f"top:{num_top}",),
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Averages:
    del keys
    lead = (prefix.length.shape[0], len(plan.contexts), plan.num_slots)
    table = Averages(
        mark=jnp.zeros(lead, jnp.uint32),
        count=jnp.zeros(lead, jnp.int32),
        ids=jnp.full((*lead, plan.num_top), -1, jnp.int32),
        probs=jnp.zeros((*lead, plan.num_top)),
    )
    if output is None:
        return table
    found = vocab_head.statistics(
        plan.model.head(params["model"]),
        output.hidden,
        (f"top:{plan.num_top}",),
        without_mask(plan.model, Sampling()),
    )
    place = jnp.arange(output.hidden.shape[1], dtype=jnp.int32)[None]
    seen = place < prompt.lengths[:, None] - 1
    recent = _recent(plan, prefix.tokens, jnp.broadcast_to(place, seen.shape))
    return visited(plan, table, recent, seen, found.top_ids, found.top_log_probs)


def _propose(plan: Plan, params, keys, table: Averages, prefix: Prefix):
    del params, keys
    parents, ranks = np.array(plan.tree.parents), np.array(plan.tree.ranks)
    depths = np.array(plan.tree.depths)
    # The last tokens of every node's path, the nearest first; column 0 is the root.
    recent = _recent(plan, prefix.tokens, prefix.length[:, None] - 1)
    for depth in range(1, max(plan.tree.depths) + 1):
        level = np.flatnonzero(depths == depth)
        above = recent[:, parents[level] + 1]
        ids, _ = looked_up(plan, table, above)
        rank = jnp.broadcast_to(jnp.asarray(ranks[level])[None], above.shape[:2])
        token = jnp.take_along_axis(ids, rank[..., None], 2)
        token = jnp.where(above[..., :1] >= 0, token, -1)
        recent = jnp.concatenate(
            [recent, jnp.concatenate([token, above[..., :-1]], 2)], 1
        )
    tokens = recent[:, 1:, 0]
    given = jnp.broadcast_to(jnp.asarray(parents, jnp.int32), tokens.shape)
    return Draft(tokens=tokens, parents=given), table


def _observe(plan: Plan, params, keys, table: Averages, round: Round) -> Averages:
    del params, keys
    # The root's lane and those accepted: their contexts are committed text.
    path = jnp.pad(round.path, ((0, 0), (1, 0)))
    nth = jnp.arange(path.shape[1], dtype=jnp.int32)[None]
    seen = nth <= round.num_accepted[:, None]
    prefix = round.prefix
    row = jnp.arange(path.shape[0])[:, None]
    text = prefix.tokens.at[
        row, jnp.where(seen & (nth > 0), prefix.length[:, None] - 1 + nth, -1)
    ].set(
        jnp.take_along_axis(round.draft.tokens, jnp.maximum(path - 1, 0), 1),
        mode="drop",
        wrap_negative_indices=False,
    )
    recent = _recent(plan, text, prefix.length[:, None] - 1 + nth)
    top = round.prediction
    ids, log_probs = (
        jnp.take_along_axis(leaf, path[..., None], 1)[..., : plan.num_top]
        for leaf in (top.top_ids, top.top_log_probs)
    )
    return visited(plan, table, recent, seen, ids, log_probs)


def _recent(plan: Plan, tokens: Array, place: Array) -> Array:
    """The last tokens int32 [B, Q, longest] up to `place` [B, Q], nearest first."""
    back = jnp.arange(plan.contexts[0], dtype=jnp.int32)
    source = place[..., None] - back[None, None]
    flat = jnp.clip(source, 0, tokens.shape[1] - 1).reshape(place.shape[0], -1)
    found = jnp.take_along_axis(tokens, flat, 1).reshape(source.shape)
    return jnp.where(source >= 0, found, -1)


def _hashed(recent: Array, size: int, num_slots: int) -> tuple[Array, Array, Array]:
    """Slot, mark and if there is one, of contexts of `size` tokens [..., longest]."""
    slot = jnp.full(recent.shape[:-1], size, jnp.uint32)
    mark = slot + jnp.uint32(1)
    for i in range(size):
        token = recent[..., i].astype(jnp.uint32)
        slot = (slot ^ token) * jnp.uint32(0x9E3779B1)
        slot ^= slot >> 15
        mark = (mark + token) * jnp.uint32(0x85EBCA6B)
        mark ^= mark >> 13
    is_there = (recent[..., :size] >= 0).all(-1)
    return (slot % jnp.uint32(num_slots)).astype(jnp.int32), mark, is_there


def looked_up(plan: Plan, table: Averages, recent: Array) -> tuple[Array, Array]:
    """Ids and mean probabilities [B, Q, K] after `recent`; -1 and 0 if never seen."""
    row = jnp.arange(recent.shape[0])[:, None]
    ids = jnp.full((*recent.shape[:2], plan.num_top), -1, jnp.int32)
    probs = jnp.zeros(ids.shape)
    for c, size in reversed(list(enumerate(plan.contexts))):  # the longest is last
        slot, mark, is_there = _hashed(recent, size, plan.num_slots)
        is_seen = is_there & (table.count[row, c, slot] > 0)
        is_seen &= table.mark[row, c, slot] == mark
        ids = jnp.where(is_seen[..., None], table.ids[row, c, slot], ids)
        probs = jnp.where(is_seen[..., None], table.probs[row, c, slot], probs)
    return ids, probs


def visited(
    plan: Plan, table: Averages, recent: Array, seen: Array, ids: Array, log_probs
) -> Averages:
    """`table` after the predictions [B, Q, K] behind `recent` [B, Q, longest] in turn.

    Lanes that are not `seen` (bool [B, Q]) leave it as it is.
    """
    row = jnp.arange(recent.shape[0])
    probs = jnp.exp(log_probs).astype(jnp.float32)

    def visit(q, table: Averages) -> Averages:
        for c, size in enumerate(plan.contexts):
            slot, mark, is_there = _hashed(recent[:, q], size, plan.num_slots)
            is_same = table.mark[row, c, slot] == mark
            count = jnp.where(is_same, table.count[row, c, slot], 0)
            new_ids, new_probs = jax.vmap(_mean)(
                count, table.ids[row, c, slot], table.probs[row, c, slot],
                ids[:, q], probs[:, q],
            )  # fmt: skip
            at = jnp.where(seen[:, q] & is_there, slot, plan.num_slots)
            table = Averages(
                mark=table.mark.at[row, c, at].set(mark, mode="drop"),
                count=table.count.at[row, c, at].set(count + 1, mode="drop"),
                ids=table.ids.at[row, c, at].set(new_ids, mode="drop"),
                probs=table.probs.at[row, c, at].set(new_probs, mode="drop"),
            )
        return table

    return jax.lax.fori_loop(0, recent.shape[1], visit, table)


def _mean(count: Array, ids: Array, probs: Array, new_ids: Array, new_probs: Array):
    """The K largest of (count * old + new) / (count + 1), and their ids."""
    is_old = count > 0
    same = (ids[:, None] == new_ids[None]) & is_old
    old = count * probs + jnp.where(same, new_probs[None], 0).sum(1)
    both = jnp.concatenate([old, jnp.where(same.any(0), -1, new_probs)])
    both = jnp.where(jnp.concatenate([ids >= 0, new_ids >= 0]), both, -1)
    both = jnp.where(jnp.arange(len(both)) < jnp.where(is_old, 0, len(ids)), -1, both)
    best, chosen = jax.lax.top_k(both, len(ids))
    found = jnp.concatenate([ids, new_ids])[chosen]
    mean = jnp.where(best >= 0, best, 0) / (count + 1)
    return jnp.where(best >= 0, found, -1), mean
