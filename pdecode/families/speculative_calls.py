"""The verifying call of draft-and-verify: its lanes, what is seen, what is drawn."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode import rng, trees
from pdecode.contracts import (
    BlockRule,
    Cache,
    Draft,
    Drafter,
    Prediction,
    Prefix,
    Query,
    SlotRun,
    View,
    Visibility,
)
from pdecode.sampling import categorical


def sanitized(draft: Draft, plan: Any) -> Draft:
    """The draft with nodes that cannot be made absent, so that output stays lossless.

    A node needs an id of the vocabulary, a parent before it (or the root), and a depth
    of at most `max_depth`. An absent node has token -1 and is never accepted.
    """
    num_stored, max_depth = plan.num_stored, plan.drafter.max_depth
    nodes = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    is_probe = nodes >= num_stored
    is_real = (draft.tokens >= 0) & (draft.tokens < plan.model.vocab_size)
    if plan.is_chain:
        # Nothing but a chain has as many levels as nodes.
        in_place = draft.parents == nodes - 1
    else:
        in_place = (draft.parents >= -1) & (draft.parents < nodes)
    in_place |= is_probe
    parents = jnp.where(in_place & ~is_probe, draft.parents, -1)
    tokens = jnp.where(is_real & in_place, draft.tokens, -1)
    if plan.is_chain:
        parents = jnp.where(is_probe, -1, nodes - 1)
        parents = jnp.broadcast_to(parents, tokens.shape)
    elif num_stored > 0:
        depth = trees.depths(trees.ancestors(parents))[:, 1:]
        tokens = jnp.where(depth <= max_depth, tokens, -1)
    return draft._replace(tokens=tokens, parents=parents)


def without_probes(draft: Draft, num_stored: int) -> Draft:
    """The nodes that may be accepted."""
    return Draft(
        tokens=draft.tokens[:, :num_stored],
        parents=draft.parents[:, :num_stored],
        q=None if draft.q is None else draft.q[:, :num_stored],
    )


def verify_query(draft: Draft, prefix: Prefix, plan: Any) -> tuple[Query, Array]:
    """The verifying Query of 1 + N lanes, and reach bool [B, 1 + N, 1 + N].

    Offsets and `among` of a draft are those of its probes: a node that may be accepted
    stands where its depth says and sees its ancestors.
    """
    batch, num_nodes = draft.tokens.shape
    num_stored = plan.num_stored
    root = prefix.length - 1
    root_token = jnp.take_along_axis(prefix.tokens, root[:, None], 1)
    lane = jnp.arange(1 + num_nodes, dtype=jnp.int32)[None]
    start = jnp.zeros((batch, 1 + num_nodes), jnp.int32)
    if plan.is_chain and num_stored == num_nodes:
        # Each lane sees the prefix and the lanes before it: one interval.
        reach = jnp.broadcast_to(lane <= lane.T, (*start.shape, 1 + num_nodes))
        place, stored = lane, None
        visible = Visibility(start, root[:, None] + 1 + lane)
    else:
        reach = among = trees.ancestors(draft.parents)
        place = trees.depths(reach)
        stored = None
        if num_stored < num_nodes:
            is_probe = jnp.broadcast_to(lane > num_stored, start.shape)
            stored = ~is_probe
            if draft.offsets is not None:
                offsets = jnp.pad(draft.offsets, ((0, 0), (1, 0)))
                place = jnp.where(is_probe, offsets, place)
            if draft.among is not None:
                seen = among.at[:, 1:, 1:].set(draft.among).at[:, :, 0].set(True)
                among = jnp.where(is_probe[..., None], seen, among)
        stop = jnp.broadcast_to(root[:, None], start.shape)
        visible = Visibility(start, stop, among=among)
    extra = draft.extra
    query = Query(
        tokens=jnp.concatenate([root_token, jnp.maximum(draft.tokens, 0)], 1),
        positions=root[:, None] + place,
        slots=SlotRun(root, stored),
        visible=visible,
        extra=None if extra is None else jnp.pad(extra, ((0, 0), (1, 0), (0, 0))),
    )
    return query, reach


def first_lanes(query: Query, reach: Array, count: int) -> tuple[Query, Array]:
    """The first `count` lanes of a verifying call, as a call of their own."""
    if count == query.tokens.shape[1]:
        return query, reach
    visible, slots, extra = query.visible, query.slots, query.extra
    among = visible.among
    assert isinstance(slots, SlotRun) and slots.stored is None  # no probes
    query = query._replace(
        tokens=query.tokens[:, :count],
        positions=query.positions[:, :count],
        extra=None if extra is None else extra[:, :count],
        visible=visible._replace(
            start=visible.start[:, :count],
            stop=visible.stop[:, :count],
            among=None if among is None else among[:, :count, :count],
        ),
    )
    return query, reach[:, :count, :count]


def as_wide_as_needed(
    sizes: tuple[int, ...],
    call: Callable,
    lanes: tuple[Query, Array],
    draft: Draft,
    active: Array,
    cache: Cache,
) -> tuple[Any, Cache, Array | int]:
    """`call(query, reach, cache)` with as few of `lanes` as all rows need.

    These are the root and the first n nodes, n one of `sizes`. Returns (out, cache, n).
    What `call` returns has lanes on axis 1; those that were not evaluated, of absent
    nodes all, are zero.
    """
    if len(sizes) == 1:
        return *call(*lanes, cache), sizes[0]
    nth = jnp.arange(1, sizes[-1] + 1, dtype=jnp.int32)[None]
    last = jnp.where((draft.tokens >= 0) & active[:, None], nth, 0).max()
    which = (jnp.asarray(sizes, jnp.int32) < last).sum(dtype=jnp.int32)

    def padded(size: int, cache: Cache):
        out, cache = call(*first_lanes(*lanes, 1 + size), cache)

        def whole(leaf: Array) -> Array:
            missing = [(0, 0)] * leaf.ndim
            missing[1] = (0, sizes[-1] - size)
            return jnp.pad(leaf, missing)

        return jax.tree.map(whole, out), cache

    branches = [functools.partial(padded, size) for size in sizes]
    out, cache = caches.one_of(which, branches, cache)
    return out, cache, jnp.asarray(sizes, jnp.int32)[which]


def checked_sizes(sizes: Sequence[int], drafter: Drafter) -> tuple[int, ...]:
    """Numbers of nodes that a call may have, rising up to all of the drafter's."""
    if not sizes:
        return (drafter.num_nodes,)
    if drafter.num_probes:
        raise ValueError(
            f"call_sizes={tuple(sizes)} of a drafter with probes, which every call "
            "has: leave it out"
        )
    if min(sizes) < 0 or max(sizes) > drafter.num_nodes:
        raise ValueError(
            f"call_sizes={tuple(sizes)} must lie in [0, {drafter.num_nodes}], the "
            "drafter's nodes"
        )
    return tuple(sorted({*sizes, drafter.num_nodes}))


def views_of(prefix: Prefix, query: Query, reach: Array) -> View:
    """What a lens sees of every lane: the prefix and the lane's own path behind it."""
    batch, num_lanes = query.tokens.shape
    length = prefix.tokens.shape[1]
    place = jnp.arange(length, dtype=jnp.int32)[None, None]
    here = query.positions[..., None] == place  # [B, K, L]
    is_path = (reach[..., None] & here[:, None]).any(2)  # [B, Q, L]
    path = jnp.einsum(
        "bqk,bkl->bql", reach.astype(jnp.int32), here * query.tokens[..., None]
    )
    is_prefix = place < prefix.length[:, None, None]
    known = is_prefix | is_path
    tokens = jnp.where(is_prefix, prefix.tokens[:, None], path)
    return View(
        tokens=jnp.where(known, tokens, 0),
        known=known,
        position=query.positions + 1,
        prompt_end=jnp.broadcast_to(prefix.prompt_end[:, None], (batch, num_lanes)),
    )


def check_fit(rule: BlockRule, drafter: Drafter) -> None:
    """Raises ValueError if the drafter is not what the rule's proof needs."""
    num_stored = drafter.num_nodes - drafter.num_probes
    is_chain = drafter.max_depth == num_stored
    if "chain" in rule.needs and not is_chain:
        raise ValueError(
            f"this rule judges one chain, but the drafter makes a tree of {num_stored} "
            f"nodes and {drafter.max_depth} levels: draft a chain, or take a rule for "
            "trees (accept.by_node, accept.traversal_verification)"
        )
    if "iid" in rule.needs and not (drafter.is_iid or is_chain):
        raise ValueError(
            "this rule is for siblings drawn independently from one law, and the "
            "drafter's are not: draw with replacement, or take accept.rejection"
        )


def given_to(rule: BlockRule, params: dict, hidden: Array) -> tuple:
    """What a rule with a role gets besides: its params and hidden states [B, Q, E]."""
    if rule.role is None:
        return ()
    if rule.role not in params:
        raise ValueError(
            f"the acceptance rule reads params of the role {rule.role!r}, but there "
            f"are only {sorted(params)}"
        )
    return params[rule.role], hidden


def log_prob_of(plan: Any, prediction: Prediction, tokens, lanes) -> Array:
    """Raw log-probability float32 [B, D + 1] of `tokens` judged at `lanes`."""
    if plan.acceptance is None:
        # Every emitted token is its lane's own sample; of a chain the lanes are in
        # order, and what stands behind the accepted ones is not read.
        found = prediction.log_prob[:, : lanes.shape[1]]
        if not plan.is_chain:
            found = jnp.take_along_axis(prediction.log_prob, lanes, 1)
        return found.astype(jnp.float32)
    log_probs = jax.nn.log_softmax(prediction.logits)
    at_lane = jnp.take_along_axis(log_probs, lanes[..., None], 1)
    picked = jnp.take_along_axis(at_lane, tokens[..., None], 2)[..., 0]
    return picked.astype(jnp.float32)


def along(plan: Any, path: Array, tokens: Array) -> Array:
    """Tokens [B, D] of the lanes in `path`; a chain's stand in order, to its end."""
    if plan.is_chain:
        return tokens[:, : path.shape[1]]
    return jnp.take_along_axis(tokens, jnp.maximum(path - 1, 0), 1)


def in_turn(draft: Draft, wanted: Array, reach: Array, depth: Array):
    """`matched` of a chain: its tokens up to the first that is not wanted."""
    del reach, depth
    size = draft.tokens.shape[1]
    nth = jnp.arange(size, dtype=jnp.int32)[None]
    is_hit = draft.tokens == wanted[:, :size]
    leaf = jnp.where(is_hit, size, nth).min(1, initial=size)
    return leaf, jnp.take_along_axis(wanted, leaf[:, None], 1)[:, 0]


def matched(draft: Draft, wanted: Array, reach: Array, depth: Array):
    """Leaf and next token [B]: follow nodes that are what the target wants there."""
    parent = jnp.maximum(draft.parents + 1, 0)
    hit = draft.tokens == jnp.take_along_axis(wanted, parent, 1)
    num_lanes = 1 + hit.shape[1]
    leaf = trees.deepest(hit, reach[:, :num_lanes, :num_lanes], depth[:, :num_lanes])
    return leaf, jnp.take_along_axis(wanted, leaf[:, None], 1)[:, 0]


def drawn(rule: BlockRule, draft: Draft, prediction: Prediction, given, keys, root):
    """Leaf and next token [B] drawn from the rule's law, and if it is a law [B]."""
    # Of what is given besides, hidden states are a row's own and params are not.
    axes = (0, 0, *(None, 0)[: len(given)])
    stop, residual = jax.vmap(rule.apply, in_axes=axes)(draft, prediction, *given)
    position = root[:, None]
    leaf_place = rng.noise(keys, rng.ACCEPT, position, round=root)
    leaf = categorical(stop, leaf_place[:, 0])
    law = jnp.take_along_axis(residual, leaf[:, None, None], 1)[:, 0]
    token_place = rng.noise(
        keys, rng.RESIDUAL, position, round=root, index=leaf[:, None]
    )
    is_law = jnp.isfinite(stop).all(1) & jnp.isfinite(law).all(1)
    if draft.q is not None:
        # A rule takes such a node for absent; the row says that its drafter is broken.
        is_law &= jnp.isfinite(draft.q).all((1, 2))
    return leaf, categorical(law, token_place[:, 0]), is_law
