"""Lanes of the target's own call that guess ahead: a target that drafts for itself.

Behind the root and behind every node of the tree the verifying call has probes, each
at the position after the one before it. A probe sees the path to its node and the
probes between; what the target answers there is a guess for the position after the
probe's. Those behind the last accepted node make the next tree, whose depth is their
number, so there is a tree for each number of probes (`Forest`). No node sees a probe.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import trees
from pdecode.contracts import Draft, Drafter, Model, Params, Prefix, Round, Sampling
from pdecode.drafters import heads
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["Forest", "full", "probed", "sparse", "worth"]


class Forest(NamedTuple):
    """A tree and its probes for each number of guesses, from none on; hashable."""

    topologies: tuple[trees.Topology, ...]
    # Of each tree: how many probes stand behind the root and behind each node.
    counts: tuple[tuple[int, ...], ...]

    @property
    def num_probes(self) -> int:
        """Probes behind a node at most, which is the depth of the deepest tree."""
        return len(self.topologies) - 1


class Tables(NamedTuple):
    """A `Forest` as arrays, a row a tree: S trees, N nodes, P probes at most."""

    parents: np.ndarray  # int32 [S, N + P]
    depth: np.ndarray  # int32 [S, N]  0: no such node
    nth: np.ndarray  # int32 [S, N]  which child of its parent
    first: np.ndarray  # int32 [S, 1 + N]  first probe behind each lane
    count: np.ndarray  # int32 [S, 1 + N]
    which: np.ndarray  # int32 [S, P]  how many probes stand before it; -1: none here
    offsets: np.ndarray  # int32 [S, N + P]
    among: np.ndarray  # bool [S, N + P, N + P]  rows of nodes are not read


class Guesses(NamedTuple):
    """What the probes behind the root's token said."""

    ids: Array  # int32 [B, K, R]  the best tokens of each, by rank
    count: Array  # int32 [B]  how many probes there were


def full(topology: trees.Topology) -> Forest:
    """Every node with as many probes as `topology` has levels, cut to what is known."""
    depth = topology.max_depth
    cut = [trees.choices([p for p in _paths(topology) if len(p) <= s])
           for s in range(depth + 1)]  # fmt: skip
    return Forest(tuple(cut), tuple((depth,) * (1 + each.num_nodes) for each in cut))


@functools.cache
def sparse(rates: tuple[tuple[float, ...], ...], num_lanes: int) -> Forest:
    """The forest that accepts most, with `num_lanes` nodes and probes in a call.

    rates[d][i] is how often the i-th best guess for depth d + 1 is right. PPD's dynamic
    sparse tree (Chen et al., 2024, arXiv:2405.18628): each tree is the best for its
    depth, the probes that are worth least are taken out, and nodes are weighed against
    probes by what the chain of trees accepts in the long run. ValueError for no room.
    """
    if num_lanes < len(rates) + 1:
        raise ValueError(
            f"{num_lanes=} must be above {len(rates)}: the root's probes and a node"
        )
    found = [_allotted(rates, nodes, num_lanes - nodes)
             for nodes in range(1, num_lanes - len(rates) + 1)]  # fmt: skip
    return max(found, key=lambda forest: worth(forest, rates))


def worth(forest: Forest, rates: tuple[tuple[float, ...], ...]) -> float:
    """Tokens accepted in a round in the long run, if depths are independent."""
    ends = [_ends(each, rates) for each in forest.topologies]
    size = len(ends)
    moves = np.zeros((size, size))
    for state, (chances, counts) in enumerate(zip(ends, forest.counts)):
        np.add.at(moves[state], list(counts), chances)
    # Half a step keeps what is stationary and forgets a period.
    share = np.linalg.matrix_power((moves + np.eye(size)) / 2, 1024)[0]
    each = [_accepted(topology, rates) for topology in forest.topologies]
    return float(share @ np.array(each))


def probed(
    model: Model,
    forest: Forest,
    token: int,
    extra: Callable[[dict[str, Params]], Array] | None = None,
    keeps: Callable[[Array, Array, Array], Array] | None = None,
) -> Drafter:
    """Drafts the trees of `forest` out of the target's answers at its own probes.

    A probe is fed as `token`; `extra(params)` [K, E] is added to the embedding of the
    first, the second and so on. Node (d, r) is the r-th best token that probe d said.
    `keeps(tokens [B, K], log_probs [B, K], next token [B]) -> bool [B, K]` says up to
    which of the best ones there are guesses at all; then a tree has a level for each.
    The first round has no guesses and drafts nothing. Nothing is drawn, so there is no
    q, and no model but the target is called: probes are lanes of its call and counted
    there. ValueError for an id that the model lacks and more children than ids.
    """
    if not 0 <= token < model.vocab_size:
        raise ValueError(f"{token=} must lie in [0, {model.vocab_size}), the ids")
    most = max(each.max_children for each in forest.topologies)
    if not 1 <= most <= model.vocab_size:
        raise ValueError(
            f"a node with {most} children: it has 1 at least, and at most the "
            f"{model.vocab_size} ids of {model.name}"
        )
    tables = _tables(forest)
    num_nodes, num_probes = tables.depth.shape[1], tables.which.shape[1]

    def init(params, keys, prompt, prefix: Prefix, output):
        del params, keys, prompt, output
        none = jnp.zeros_like(prefix.length)
        ids = jnp.full((*none.shape, forest.num_probes, most), -1, jnp.int32)
        return Guesses(ids, none)

    return Drafter(
        num_nodes=num_nodes + num_probes,
        max_depth=max(each.max_depth for each in forest.topologies),
        init=init,
        propose=functools.partial(_propose, tables, token, extra),
        observe=functools.partial(_observe, model, tables, keeps),
        num_probes=num_probes,
    )


def _propose(tables: Tables, token: int, extra, params, keys, state: Guesses, prefix):
    del keys, prefix

    def here(table: np.ndarray) -> Array:
        return jnp.asarray(table)[state.count]

    batch, _, most = state.ids.shape
    depth, which = here(tables.depth), here(tables.which)
    place = jnp.maximum(depth - 1, 0) * most + here(tables.nth)
    tokens = jnp.take_along_axis(state.ids.reshape(batch, -1), place, 1)
    tokens = jnp.where(depth > 0, tokens, -1)
    added = None
    if extra is not None:
        change = extra(params)
        added = jnp.where(which[..., None] < 0, 0, change[jnp.maximum(which, 0)])
        added = jnp.pad(added, ((0, 0), (depth.shape[1], 0), (0, 0)))
    draft = Draft(
        tokens=jnp.concatenate([tokens, jnp.where(which < 0, -1, token)], 1),
        parents=here(tables.parents),
        offsets=here(tables.offsets),
        among=here(tables.among),
        extra=added,
    )
    return draft, state


def _observe(
    model: Model, tables: Tables, keeps, params, keys, state: Guesses, round: Round
) -> Guesses:
    """The answers of the probes behind the last accepted lane."""
    del keys
    num_nodes, most = tables.depth.shape[1], state.ids.shape[2]
    leaf = heads.last_lane(round)[:, None]
    first, count = (
        jnp.take_along_axis(jnp.asarray(table)[state.count], leaf, 1)
        for table in (tables.first, tables.count)
    )
    lanes = 1 + num_nodes + first + jnp.arange(state.ids.shape[1])[None]
    lanes = jnp.minimum(lanes, round.output.hidden.shape[1] - 1)
    hidden = jnp.take_along_axis(round.output.hidden, lanes[..., None], 1)
    sampling, head = without_mask(model, Sampling()), model.head(params["model"])
    found = vocab_head.statistics(head, hidden, (f"top:{most}",), sampling)
    # Banned ids have a logit of -1e30: no proposals.
    ids = jnp.where(found.top_log_probs > -1e20, found.top_ids, -1)
    count = count[:, 0]
    if keeps is not None:
        kept = keeps(ids[..., 0], found.top_log_probs[..., 0], round.next_token)
        count = jnp.minimum(count, jnp.cumprod(kept, 1).sum(1, dtype=jnp.int32))
    return Guesses(ids, count)


def _tables(forest: Forest) -> Tables:
    size = len(forest.topologies)
    num_nodes = max(each.num_nodes for each in forest.topologies)
    deepest = max(each.max_depth for each in forest.topologies)
    if num_nodes == deepest and any(
        each != trees.chain(each.max_depth) for each in forest.topologies
    ):
        num_nodes += 1  # as many nodes as levels would say that all are chains
    num_probes = max(map(sum, forest.counts))
    lanes = num_nodes + num_probes
    made = Tables(
        parents=np.full((size, lanes), -1, np.int32),
        depth=np.zeros((size, num_nodes), np.int32),
        nth=np.zeros((size, num_nodes), np.int32),
        first=np.zeros((size, 1 + num_nodes), np.int32),
        count=np.zeros((size, 1 + num_nodes), np.int32),
        which=np.full((size, num_probes), -1, np.int32),
        offsets=np.zeros((size, lanes), np.int32),
        among=np.zeros((size, lanes, lanes), bool),
    )
    for state, (topology, counts) in enumerate(zip(forest.topologies, forest.counts)):
        _fill(Tables(*(table[state] for table in made)), topology, counts)
    if num_nodes == deepest:
        made.parents[:, :num_nodes] = np.arange(num_nodes) - 1
    return made


def _fill(into: Tables, topology: trees.Topology, counts: tuple[int, ...]) -> None:
    """The arrays of one tree; `into` are views."""
    num_nodes, used = into.depth.shape[0], 0
    reach: list[set[int]] = [set()]  # nodes on the path to each lane
    for node, parent in enumerate(topology.parents):
        into.parents[node] = parent
        into.depth[node] = into.offsets[node] = topology.depths[node]
        into.nth[node] = topology.parents[:node].count(parent)
        reach.append(reach[parent + 1] | {node})
    for lane, count in enumerate(counts):
        into.first[lane], into.count[lane] = used, count
        for before in range(count):
            own = num_nodes + used
            into.which[used] = before
            into.offsets[own] = len(reach[lane]) + 1 + before
            into.among[own, [*reach[lane], *range(own - before, own + 1)]] = True
            used += 1


def _allotted(rates, num_nodes: int, num_probes: int) -> Forest:
    """The best trees of `num_nodes`, each with the probes that are worth most."""
    topologies, values, counts = [trees.Topology((), ())], [0.0], []
    for depth in range(1, len(rates) + 1):
        most = sum(len(rates[0]) ** level for level in range(1, depth + 1))
        topology = trees.greedy(rates[:depth], min(num_nodes, most))
        topologies.append(topology)
        values.append(_accepted(topology, rates))
    for topology in topologies:
        ends = _ends(topology, rates)
        own = [len(rates)] * len(ends)
        while sum(own) > num_probes:
            losses = [
                end * (values[k] - values[k - 1]) if k else np.inf
                for end, k in zip(ends, own)
            ]
            own[int(np.argmin(losses))] -= 1
        counts.append(tuple(own))
    return Forest(tuple(topologies), tuple(counts))


def _ends(topology: trees.Topology, rates) -> np.ndarray:
    """Chances [1 + N] that the accepted path ends at the root and at each node."""
    chances = np.array([1.0, *map(functools.partial(_chance, rates), _paths(topology))])
    ends = chances.copy()
    for node, parent in enumerate(topology.parents):
        ends[parent + 1] -= chances[node + 1]
    return ends


def _accepted(topology: trees.Topology, rates) -> float:
    return float(sum(_chance(rates, path) for path in _paths(topology)))


def _chance(rates, path: tuple[int, ...]) -> float:
    return float(np.prod([rates[depth][nth] for depth, nth in enumerate(path)]))


def _paths(topology: trees.Topology) -> list[tuple[int, ...]]:
    """Of each node the ranks from the root's child down."""
    found: list[tuple[int, ...]] = []
    for node, parent in enumerate(topology.parents):
        above = found[parent] if parent >= 0 else ()
        found.append((*above, topology.parents[:node].count(parent)))
    return found
