"""Acceptance rules: probabilities, never decisions.

A rule takes no key. It says how likely each outcome is, so a test can enumerate it
exactly; the draft-verify family draws one leaf and one token from what it says.
`match` is the rule that needs no probabilities at all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import trees
from pdecode.contracts import BlockRule, Draft, NodeRule, Prediction

__all__ = [
    "Climb",
    "block_verification",
    "by_node",
    "k_seq",
    "laws_of",
    "match",
    "merged",
    "normalised",
    "rejection",
    "traversal_verification",
    "walk",
]

# The longest path whose tokens equal the target's own token at their parent: greedy at
# temperature 0, and exactly plain sampling with the same seed above it.
match = "match"

_SMALL = 1e-30


def normalised(weight: Array, fallback: Array) -> Array:
    """`weight` [V] scaled to sum to 1, or `fallback` where it is all zero."""
    total = weight.sum(-1, keepdims=True)
    return jnp.where(total > _SMALL, weight / jnp.maximum(total, _SMALL), fallback)


def rejection(max_children: int = 1) -> NodeRule:
    """Multi-round speculative sampling: accept child c with min(1, p(c) / q_c(c)).

    Leviathan et al., 2022, arXiv:2211.17192 for one child; SpecInfer (Miao et al.,
    2023, arXiv:2305.09781) for more: after a refusal p becomes norm((p - q_c)+). q_c is
    the law that child c was drawn from, given its elder siblings: for draws without
    replacement it excludes them. Lossless.
    """

    def apply(p: Array, q: Array, tokens: Array) -> tuple[Array, Array]:
        accept = []
        for c in range(max_children):
            token = jnp.maximum(tokens[c], 0)
            drawn = q[c, token]
            is_real = (tokens[c] >= 0) & (drawn > 0)
            ratio = p[token] / jnp.where(is_real, drawn, 1)
            accept.append(jnp.where(is_real, jnp.minimum(1, ratio), 0))
            refused = normalised(jnp.maximum(p - q[c], 0), p)
            p = jnp.where(is_real, refused, p)
        return jnp.stack(accept), p

    return NodeRule(apply, max_children, is_lossless=True)


def k_seq(max_children: int) -> NodeRule:
    """K-SEQ: accept each of k i.i.d. children with min(1, p / (rho q)).

    SpecTr, Sun et al., 2023, arXiv:2310.15141. rho is the least at which the children
    take no more than p gives: for one child 1, which is plain rejection. Lossless for
    children drawn independently from one law, equal ones included.
    """

    def apply(p: Array, q: Array, tokens: Array) -> tuple[Array, Array]:
        law, num = q[0], (tokens >= 0).sum()

        def taken(rho):  # probability that one child, and that any, is accepted
            one = jnp.minimum(law, p / rho).sum()
            return one, 1 - (1 - one) ** num

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            one, any_ = taken(middle)
            is_root_above = any_ > middle * one
            return (
                jnp.where(is_root_above, middle, low),
                jnp.where(is_root_above, high, middle),
            )

        unit = jnp.ones((), p.dtype)
        one, any_ = taken(unit)
        bracket = (unit, jnp.maximum(num, 1).astype(p.dtype))
        # Any rho above the root is valid: the upper end.
        _, rho = jax.lax.fori_loop(0, 50, halve, bracket)
        rho = jnp.where(any_ - one <= 1e-12, unit, rho)
        one, any_ = taken(rho)
        drawn = law[jnp.maximum(tokens, 0)]
        is_real = (tokens >= 0) & (drawn > 0)
        ratio = p[jnp.maximum(tokens, 0)] / jnp.where(is_real, rho * drawn, 1)
        share = any_ / jnp.where(one > 0, one, 1)
        rest = jnp.maximum(p - jnp.minimum(law, p / rho) * share, 0)
        return jnp.where(is_real, jnp.minimum(1, ratio), 0), normalised(rest, p)

    return NodeRule(apply, max_children, is_lossless=True, needs=("iid",))


def by_node(rule: NodeRule, *, merges: bool = False) -> BlockRule:
    """The BlockRule that walks the tree with `rule` at every node.

    With `merges` equal siblings are one node with the children of all of them, each
    still tried in turn: several drafts that share what was accepted (SpecTr's sequence
    form).
    """

    def apply(draft: Draft, prediction: Prediction, *given) -> tuple[Array, Array]:
        params = given[:1]  # of the rule's role; hidden states are not for a node
        return walk(rule, draft, prediction.probs, params=params, merges=merges)

    return BlockRule(
        apply, is_lossless=rule.is_lossless, needs=rule.needs, role=rule.role
    )


def walk(
    rule: NodeRule,
    draft: Draft,
    p: Array,
    *,
    params: tuple = (),
    forced: Array | None = None,
    merges: bool = False,
) -> tuple[Array, Array]:
    """Stop [1 + N] and residual [1 + N, V] of `rule` at every node of one row.

    `forced` (bool [N]) nodes are accepted when they are tried.
    """
    num_lanes = p.shape[0]
    lanes = jnp.arange(num_lanes)
    if num_lanes == 1:
        return jnp.ones(1, p.dtype), p
    parents, first = draft.parents, lanes[:-1]
    if merges:
        parents, first = merged(draft)
    nodes = jax.vmap(trees.children, (None, 0, None))(
        parents, lanes, rule.max_children
    )  # [1 + N, C]
    tokens = jnp.where(nodes >= 0, draft.tokens[nodes], -1)

    def at_node(p, q, tokens):
        return rule.apply(p, q, tokens, *params)

    accept, residual = jax.vmap(at_node)(p, laws_of(draft, p)[nodes], tokens)
    if forced is not None:
        accept = jnp.where((nodes >= 0) & (tokens >= 0) & forced[nodes], 1, accept)
    refused = jnp.cumprod(1 - accept, -1)
    before = jnp.concatenate([jnp.ones_like(refused[:, :1]), refused[:, :-1]], -1)
    # Probability of entering each node from its parent, gathered at its lane.
    enter = jnp.zeros(num_lanes, p.dtype)
    lane = jnp.where(nodes >= 0, first[nodes] + 1, num_lanes)
    enter = enter.at[lane].add(before * accept, mode="drop")
    parent = jnp.concatenate([jnp.zeros(1, jnp.int32), parents + 1])

    def down(reach, lane):
        here = jnp.where(lane == 0, 1.0, reach[parent[lane]] * enter[lane])
        return reach.at[lane].set(here), None

    reach, _ = jax.lax.scan(down, jnp.zeros(num_lanes, p.dtype), lanes)
    return reach * refused[:, -1], residual


def laws_of(draft: Draft, p: Array) -> Array:
    """q [N, V] of one row; tokens without a law were given: all of it is on them."""
    if draft.q is not None:
        return draft.q
    return jax.nn.one_hot(draft.tokens, p.shape[-1], dtype=p.dtype)


def merged(draft: Draft) -> tuple[Array, Array]:
    """(parents, first) int32 [N]: the first node with each node's path, and whose child
    each node then is. One row.
    """

    # 0: a, 1: a, 2: b below 1  ->  parents -1 -1 0, first 0 0 2
    def one(carry, node):
        parents, first = carry
        above = draft.parents[node]
        parent = jnp.where(above < 0, -1, first[jnp.maximum(above, 0)])
        is_same = (parents == parent) & (draft.tokens == draft.tokens[node])
        is_same &= jnp.arange(parents.shape[0]) < node
        own = jnp.where(is_same.any(), jnp.argmax(is_same), node).astype(jnp.int32)
        return (parents.at[node].set(parent), first.at[node].set(own)), None

    blank = jnp.full(draft.parents.shape, -2, jnp.int32)
    nodes = jnp.arange(blank.shape[0], dtype=jnp.int32)
    return jax.lax.scan(one, (blank, blank), nodes)[0]


def block_verification() -> BlockRule:
    """Verifies one chain of drafts as a whole.

    Sun et al., 2024, arXiv:2403.10444. Lossless, and never fewer tokens in expectation
    than token by token. Its proof needs draft noise that is fresh every round.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        p = prediction.probs
        num_nodes = p.shape[0] - 1
        if num_nodes == 0:
            return jnp.ones(1, p.dtype), p
        q = laws_of(draft, p)
        token = jnp.maximum(draft.tokens, 0)
        here = jnp.arange(num_nodes)
        drawn = q[here, token]
        is_real = (draft.tokens >= 0) & (drawn > 0)
        ratio = jnp.where(is_real, p[here, token] / jnp.where(is_real, drawn, 1), 0)

        def carry_over(weight, ratio):
            weight = jnp.minimum(1.0, weight * ratio)
            return weight, weight

        one = jnp.ones((), p.dtype)
        _, weights = jax.lax.scan(carry_over, one, ratio)  # w_1 .. w_N
        before = jnp.concatenate([one[None], weights[:-1]])  # w_0 .. w_{N-1}
        excess = jnp.maximum(before[:, None] * p[:-1] - q, 0)  # [N, V]
        mass = excess.sum(-1)
        # h_i for i = 1 .. N-1 uses the excess one position later.
        later, weight = mass[1:], weights[:-1]
        slack = later + 1 - weight
        stop_at = jnp.where(slack > 0, later / jnp.where(slack > 0, slack, 1), 1.0)
        stop_at = jnp.concatenate([one[None], stop_at, weights[-1:]])  # h_0 .. h_N
        # The largest i that stops wins, so i stops if no later one does.
        none_after = jnp.cumprod((1 - stop_at)[::-1])[::-1]
        none_after = jnp.concatenate([none_after[1:], one[None]])
        residual = jax.vmap(normalised)(excess, p[:-1])
        return stop_at * none_after, jnp.concatenate([residual, p[-1:]])

    return BlockRule(apply, is_lossless=True, needs=("chain",))


class Climb(NamedTuple):
    """Where traversal verification stands in one row's tree."""

    lane: Array  # int32 []
    alive: Array  # []  probability that nothing is accepted yet
    weight: Array  # [1 + N]
    p: Array  # [1 + N, V]  what is left of the target's law at each lane
    tried: Array  # bool [N]
    stop: Array  # [1 + N]


def traversal_verification() -> BlockRule:
    """Block verification of a tree: leaves first, each with its whole path.

    Weng et al., 2025, arXiv:2505.12398. A child of a node with weight w and law p has
    min(1, w p / q); a leaf is accepted with its weight, and with it all above. A
    refused node leaves its parent S / (S + 1 - w) of the law (w p - q)+, whose sum is
    S. Lossless; on a chain it is block verification.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        p = prediction.probs
        num_nodes = p.shape[0] - 1
        if num_nodes == 0:
            return jnp.ones(1, p.dtype), p
        q = laws_of(draft, p)
        token, parent = jnp.maximum(draft.tokens, 0), draft.parents + 1
        drawn = q[jnp.arange(num_nodes), token]

        def turn(at: Climb, _):
            is_child = (parent == at.lane) & ~at.tried
            child, enters = jnp.argmax(is_child), is_child.any()
            chance = at.p[at.lane, token[child]]
            ratio = chance / jnp.where(drawn[child] > 0, drawn[child], 1)
            below = jnp.minimum(1, at.weight[at.lane] * ratio)
            # Or the lane was tried as the end of the path, and refused.
            node = jnp.maximum(at.lane - 1, 0)
            up = jnp.where(at.lane == 0, 0, parent[node])
            ends = jnp.where(enters, 0, at.alive * at.weight[at.lane])
            excess = jnp.maximum(at.weight[up] * at.p[up] - q[node], 0)
            mass = excess.sum()
            slack = mass + 1 - at.weight[up]
            weight = jnp.where(slack > 0, mass / jnp.where(slack > 0, slack, 1), 1)
            leaves = ~enters & (at.lane > 0)
            left = jnp.where(leaves, normalised(excess, at.p[up]), at.p[up])
            weight = jnp.where(leaves, weight, at.weight[up])
            return Climb(
                lane=jnp.where(enters, child + 1, up).astype(jnp.int32),
                alive=at.alive - ends,
                weight=at.weight.at[jnp.where(enters, child + 1, up)].set(
                    jnp.where(enters, below, weight)
                ),
                p=at.p.at[up].set(left),
                tried=at.tried.at[child].set(at.tried[child] | enters),
                stop=at.stop.at[at.lane].add(ends),
            ), None

        one = jnp.ones((), p.dtype)
        zero = jnp.zeros(1 + num_nodes, p.dtype)
        start = Climb(
            lane=jnp.zeros((), jnp.int32),
            alive=one,
            weight=zero.at[0].set(1),
            p=p,
            tried=(draft.tokens < 0) | (drawn <= 0),
            stop=zero,
        )
        # Every node is entered and left once at most, the root only left.
        end, _ = jax.lax.scan(turn, start, length=2 * num_nodes + 1)
        return end.stop, end.p

    return BlockRule(apply, is_lossless=True)
