"""A smaller causal model as the drafter, with its own cache, over any static tree."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import prompts, rng, trees
from pdecode.contracts import (
    Cache,
    Draft,
    DraftCost,
    Drafter,
    Model,
    Prediction,
    Prefix,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.drafters import ignore
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import accept
from pdecode.sampling import categorical, without_mask

DRAWS = ("with_replacement", "without_replacement", "coupled")


class CausalState(NamedTuple):
    """The first `written` slots hold committed tokens, or drafts that may become so."""

    cache: Cache
    written: Array  # int32 [B]


class Level(NamedTuple):
    """One depth of a static tree, as numpy arrays."""

    depth: int
    nodes: np.ndarray  # int [n]
    parent: np.ndarray  # int [n]  place of each node's parent in the level above
    nth: np.ndarray  # int [n]  which child of its parent
    above: np.ndarray  # int [m]  nodes of smaller depth


def draft_model(
    model: Model,
    topology: trees.Topology,
    sampling: Sampling,
    *,
    draws: str = "with_replacement",
) -> Drafter:
    """Drafts `topology` with `model`, whose params are those of the role "drafter".

    `draws` says how the children of a node are chosen, each with its truthful q:
    "with_replacement" i.i.d. from the drafter's law, "without_replacement" in turn from
    what its elder siblings leave, "coupled" under the target's own noise and without q,
    for chains and `accept.match`.

    A chain's nodes are stored as they are drafted: those accepted stand where they
    belong, so a round costs one lane a draft and one or two for what was committed. A
    node of a tree sees its ancestors only as lanes of its own call, so each level's
    call repeats the nodes above it, unstored.
    """
    _check(topology, draws)
    sampling = without_mask(model, sampling)
    is_chain = topology.max_depth == topology.num_nodes
    levels = _levels(topology)
    # Committed tokens that a round's first call may have to store.
    num_pending = 2 if is_chain else topology.max_depth + 1
    order = np.argsort(np.concatenate([level.nodes for level in levels]))
    reach = _reach(topology)
    parents = jnp.asarray(topology.parents, jnp.int32)

    def init(params, keys, prompt, prefix: Prefix, output):
        del keys, output
        room = num_pending + topology.max_depth
        cache = model.init_cache(prompt, prefix.tokens.shape[1] + room)
        _, cache = prompts.prefill(model, params["drafter"], prompt, cache, drop=1)
        return CausalState(cache, prompt.lengths - 1)

    def propose(params, keys, state: CausalState, prefix: Prefix):
        own, root = params["drafter"], prefix.length - 1
        hidden, cache, num_missing = store(model, own, state, prefix, num_pending)
        tokens, laws, num_lanes = [], [], 0
        for level in levels:
            if level.depth > 1:
                above = jnp.concatenate(tokens, 1)
                query = (
                    chain_query(above[:, -1:], root + level.depth - 1)
                    if is_chain
                    else tree_query(above, root, level, topology, reach)
                )
                output, cache = model.apply(own, query, cache)
                hidden = output.hidden[:, -tokens[-1].shape[1] :]
                num_lanes += query.tokens.shape[1]
            found = predict(model, own, keys, root, level, hidden, sampling, draws)
            drawn, law = draw(draws, keys, root, level, found)
            tokens.append(drawn)
            laws.append(law)
        draft = Draft(
            tokens=jnp.concatenate(tokens, 1)[:, order],
            parents=jnp.broadcast_to(parents, (*root.shape, len(order))),
            q=None if draws == "coupled" else jnp.concatenate(laws, 1)[:, order],
            cost=DraftCost(
                num_calls=jnp.full_like(root, len(levels)),
                num_tokens=num_missing + num_lanes,
                num_tokens_computed=jnp.full_like(root, num_pending + num_lanes),
            ),
        )
        # The last node of a chain is drafted, but not evaluated.
        num_kept = topology.max_depth - 1 if is_chain else 0
        return draft, CausalState(cache, prefix.length + num_kept)

    return Drafter(
        topology.num_nodes,
        topology.max_depth,
        init,
        propose,
        ignore,
        num_prefill_calls=1,
    )


def store(model: Model, params, state: CausalState, prefix: Prefix, width: int):
    """Stores the committed tokens that the drafter's cache lacks, at most `width`.

    Returns (hidden [B, 1, E] at the root, cache, tokens stored int32 [B]). The root is
    the last of them; drafts that were not accepted are written over.
    """
    cached = jnp.minimum(state.written, prefix.length - 1)
    place = cached[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    query = Query(
        tokens=jnp.take_along_axis(prefix.tokens, last, 1),
        positions=place,
        # What stands behind the root is written over before it is seen.
        slots=SlotRun(cached),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )
    output, cache = model.apply(params, query, state.cache)
    lane = jnp.clip(prefix.length - 1 - cached, 0, width - 1)
    hidden = jnp.take_along_axis(output.hidden, lane[:, None, None], 1)
    return hidden, cache, prefix.length - cached


def chain_query(token: Array, position: Array) -> Query:
    """One drafted token [B, 1] at `position` [B], stored where it will belong."""
    place = position[:, None]
    return Query(
        tokens=jnp.maximum(token, 0),
        positions=place,
        slots=SlotRun(position),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )


def tree_query(
    above: Array, root: Array, level: Level, topology: trees.Topology, reach
) -> Query:
    """All nodes above `level` (tokens [B, m]) as unstored lanes behind the prefix."""
    batch, size = above.shape
    depths = np.array(topology.depths)[level.above]
    among = reach[np.ix_(level.above, level.above)]
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


def predict(model, params, keys, root, level: Level, hidden, sampling, draws):
    """The laws of the level above, or its tokens under the target's noise."""
    places = functools.partial(
        rng.noise, keys, rng.TARGET, (root + level.depth)[:, None]
    )
    wants = ("token",) if draws == "coupled" else ("probs",)
    return vocab_head.statistics(model.head(params), hidden, wants, sampling, places)


def draw(
    draws: str, keys: Array, root: Array, level: Level, found: Prediction
) -> tuple[Array, Array | None]:
    """Tokens [B, n] of a level's nodes and the laws [B, n, V] they were drawn from.

    A token that its law makes impossible is -1: no proposal.
    """
    if draws == "coupled":
        return found.token, None
    batch, size = root.shape[0], len(level.nodes)
    position = jnp.broadcast_to((root + level.depth)[:, None], (batch, size))
    index = jnp.broadcast_to(jnp.asarray(level.nodes, jnp.int32), (batch, size))
    places = rng.noise(keys, rng.DRAFT, position, round=root, index=index)
    if draws == "with_replacement":
        law = found.probs[:, level.parent]
        return _possible(categorical(law, places), law), law
    # Elder siblings first; what they took is out of the law of the younger.
    rest = found.probs
    tokens = jnp.full((batch, size), -1, jnp.int32)
    laws = jnp.zeros((batch, size, rest.shape[-1]), rest.dtype)
    for nth in range(int(level.nth.max()) + 1):
        here = np.flatnonzero(level.nth == nth)
        law = rest[:, level.parent[here]]
        token = categorical(law, places[:, here])
        tokens = tokens.at[:, here].set(_possible(token, law))
        laws = laws.at[:, here].set(law)
        taken = jnp.arange(law.shape[-1])[None, None] == token[..., None]
        left = jnp.where(taken, 0, law)
        left = accept.normalised(left, jnp.zeros_like(left))
        rest = rest.at[:, level.parent[here]].set(left)
    return tokens, laws


def _check(topology: trees.Topology, draws: str) -> None:
    if draws not in DRAWS:
        raise ValueError(f"{draws=} must be one of {DRAWS}")
    if draws == "coupled" and topology.max_children > 1:
        raise ValueError("coupled siblings would be equal: draft a chain instead")
    if topology.num_nodes < 1:
        raise ValueError("an empty tree drafts nothing: use drafters.nothing()")


def _possible(token: Array, law: Array) -> Array:
    chance = jnp.take_along_axis(law, token[..., None], -1)[..., 0]
    return jnp.where(chance > 0, token, -1)


def _levels(topology: trees.Topology) -> list[Level]:
    parents, depths = np.array(topology.parents), np.array(topology.depths)
    found, before = [], np.array([-1])
    for depth in range(1, topology.max_depth + 1):
        nodes = np.flatnonzero(depths == depth)
        nth = [int((parents[:node] == parents[node]).sum()) for node in nodes]
        parent = np.searchsorted(before, parents[nodes])
        above = np.flatnonzero(depths < depth)
        # Level by level, as they are drawn: the last level has the last lanes.
        above = above[np.argsort(depths[above], kind="stable")]
        found.append(Level(depth, nodes, parent, np.array(nth), above))
        before = nodes
    return found


def _reach(topology: trees.Topology) -> np.ndarray:
    """bool [N, N]: node q descends from node k or is it."""
    reach = np.eye(topology.num_nodes, dtype=bool)
    for node, parent in enumerate(topology.parents):
        if parent >= 0:
            reach[node] |= reach[parent]
    return reach
