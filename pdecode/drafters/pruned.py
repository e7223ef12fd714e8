"""Trees as large as they are worth, chosen row by row before each round.

`paced` for trees: a node's chance is the product along its path of how often this row's
drafts were accepted at that depth by that child (the positional rates of Sequoia, Chen
et al., 2024, arXiv:2402.12374, learned while decoding). The likeliest nodes are kept,
as many as give most tokens for a call of so many lanes. Nothing of it hangs on a drawn
token, so the rows' own law stays.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import trees
from pdecode.contracts import Draft, Drafter, Prefix, Round
from pdecode.drafters import paced

__all__ = ["Record", "by_costs", "chances", "placed", "pruned", "recorded"]

MAX_RANK = 8  # children of a node that are told apart
YOUNGER = 0.3  # what is believed of a child, over its elder sibling


class Record(NamedTuple):
    """What a row knows of its drafts, and the state of the drafter that made them.

    A draft with one path has rates of its own: a copy is another thing than a tree.
    """

    inner: Any
    kept: Array  # float32 [B, 2, D, MAX_RANK]  accepted, fading; by shape, depth, child
    tried: Array  # float32 [B, 2, D, MAX_RANK]  of those whose parent was accepted
    place: Array  # int32 [B, N]  in `kept`, flat, of each node of the last draft
    seen: Array  # int32 [B]  tokens committed before the last round


class Plan(NamedTuple):
    """What a pruned drafter is made of."""

    drafter: Drafter
    choices: tuple[int, ...]
    prices: paced.Prices


def by_costs(
    drafter: Drafter, draft_length: str, call_costs: Any
) -> tuple[Drafter, tuple[int, ...]]:
    """A drafter that costs no calls, and the `call_sizes` of its family.

    `draft_length` "fixed" leaves it as it is; "auto" makes each draft as large as is
    worth its lanes at `call_costs`, at most what it was. ValueError for a draft larger
    than calls whose cost is given.
    """
    if draft_length == "fixed":
        return drafter, ()
    sizes = paced.lengths(drafter.num_nodes)
    is_chain = drafter.max_depth == drafter.num_nodes
    made = paced.paced if is_chain else pruned
    return made(drafter, sizes, paced.Prices(call_costs)), sizes


def pruned(drafter: Drafter, choices: tuple[int, ...], prices: paced.Prices) -> Drafter:
    """`drafter`, whose nodes count as given, with as many of them as are worth it.

    Nodes come likeliest first. Give `choices` to the family as `call_sizes`. Raises
    ValueError for nodes that are drawn, which are judged in the order drawn, and for
    choices that are no sizes of its tree.
    """
    if not choices or min(choices) < 0 or max(choices) != drafter.num_nodes:
        raise ValueError(
            f"{choices=} must be sizes from 0 up to {drafter.num_nodes}, the nodes"
        )

    plan = Plan(drafter, choices, prices)
    return drafter._replace(
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Record:
    inner = plan.drafter.init(params, keys, prompt, prefix, output)
    batch = prefix.length.shape[0]
    blank = jnp.zeros((batch, 2, plan.drafter.max_depth, MAX_RANK), jnp.float32)
    place = jnp.zeros((batch, plan.drafter.num_nodes), jnp.int32)
    return Record(inner, blank, blank, place, jnp.zeros_like(prefix.length))


def _propose(plan: Plan, params, keys, record: Record, prefix: Prefix):
    draft, inner = plan.drafter.propose(params, keys, record.inner, prefix)
    if draft.q is not None or draft.extra is not None:
        raise ValueError(
            "a tree of drawn nodes is judged in the order drawn: take "
            "draft_length='fixed', or draws that count as given (draws='best')"
        )
    place = placed(draft, plan.drafter.max_depth)
    chance = chances(record, draft, place)
    order = jnp.argsort(-chance, 1, stable=True).astype(jnp.int32)
    tokens = jnp.cumsum(jnp.take_along_axis(chance, order, 1), 1)
    worth = 1 + jnp.pad(tokens, ((0, 0), (1, 0)))
    worth = jnp.minimum(worth, (prefix.end - prefix.length)[:, None])
    sizes = jnp.asarray(plan.choices, jnp.int32)
    speed = worth[:, sizes] / paced.cost_of(plan.choices, plan.prices)[None]
    size = sizes[jnp.argmax(speed, 1)]  # of equals the smallest
    size = jnp.where(prefix.length > record.seen, size, 0)
    place = jnp.take_along_axis(place, order, 1)
    after = record._replace(inner=inner, place=place, seen=prefix.length)
    return first(draft, order, size), after


def _observe(plan: Plan, params, keys, record: Record, round: Round) -> Record:
    inner = plan.drafter.observe(params, keys, record.inner, round)
    return recorded(record._replace(inner=inner), round)


def placed(draft: Draft, max_depth: int) -> Array:
    """Where each node's rate stands in `Record.kept`, flat: int32 [B, N]."""
    parents, is_real = draft.parents, draft.tokens >= 0
    depth = trees.depths(trees.ancestors(parents))[:, 1:] - 1
    size = parents.shape[1]
    elder = jnp.arange(size)[None, :, None] > jnp.arange(size)[None, None]
    elder &= (parents[..., None] == parents[:, None]) & is_real[:, None]
    rank = elder.sum(-1, dtype=jnp.int32)
    is_tree = jnp.where(is_real, rank, 0).max(1, keepdims=True) > 0
    rank = jnp.minimum(rank, MAX_RANK - 1)
    depth = jnp.clip(depth, 0, max_depth - 1)
    return (is_tree * max_depth + depth) * MAX_RANK + rank


def chances(record: Record, draft: Draft, place: Array) -> Array:
    """Of each node to be accepted, float32 [B, N]; no more than its parent's."""
    share = YOUNGER ** jnp.arange(MAX_RANK, dtype=jnp.float32)[None, None]
    batch, _, max_depth, _ = record.kept.shape
    flat = (batch * 2, max_depth, MAX_RANK)
    rates = paced.rates(record.kept.reshape(flat), record.tried.reshape(flat), share)
    own = jnp.take_along_axis(rates.reshape(batch, -1), place, 1)
    own = jnp.where(draft.tokens >= 0, own, 0)
    reach = trees.ancestors(draft.parents)[:, 1:, 1:]
    return jnp.where(reach, own[:, None], 1).prod(-1)


def first(draft: Draft, order: Array, size: Array) -> Draft:
    """The draft with its nodes in `order` [B, N], parents first; `size` [B] of them."""
    place = jnp.argsort(order, 1).astype(jnp.int32)  # where each node went
    parents = jnp.take_along_axis(draft.parents, order, 1)
    moved = jnp.take_along_axis(place, jnp.maximum(parents, 0), 1)
    tokens = jnp.take_along_axis(draft.tokens, order, 1)
    is_kept = jnp.arange(tokens.shape[1])[None] < size[:, None]
    return draft._replace(
        tokens=jnp.where(is_kept, tokens, -1),
        parents=jnp.where(is_kept & (parents >= 0), moved, -1),
    )


def recorded(record: Record, round: Round) -> Record:
    """The record with one more round."""
    draft, path = round.draft, round.path
    node = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)
    is_step = jnp.arange(path.shape[1])[None] < round.num_accepted[:, None]
    on_path = (path[..., None] == node[None, None] + 1) & is_step[..., None]
    was_kept = on_path.any(1)
    above = jnp.take_along_axis(was_kept, jnp.maximum(draft.parents, 0), 1)
    was_tried = (draft.tokens >= 0) & ((draft.parents < 0) | above)
    row = jnp.arange(path.shape[0])[:, None]

    def counted(of: Array) -> Array:
        blank = jnp.zeros((path.shape[0], record.kept[0].size), jnp.float32)
        return blank.at[row, record.place].add(of).reshape(record.kept.shape)

    # Of the other shape nothing was learned.
    half = record.kept.shape[2] * MAX_RANK
    shape = record.place[:, :1] // half == jnp.arange(2)[None]
    fade = jnp.where(was_tried.any(1, keepdims=True), paced.KEEP, paced.REST)
    fade = jnp.where(shape, fade, 1)[..., None, None]
    return record._replace(
        kept=fade * record.kept + counted(was_kept),
        tried=fade * record.tried + counted(was_tried),
    )
