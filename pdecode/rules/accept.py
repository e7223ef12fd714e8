"""Acceptance rules: probabilities, never decisions.

A rule takes no key. It says how likely each outcome is, so a test can enumerate it
exactly; the draft-verify family draws one leaf and one token from what it says.
`match` is the rule that needs no probabilities at all.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import trees
from pdecode.contracts import BlockRule, Draft, NodeRule, Prediction

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


def by_node(rule: NodeRule) -> BlockRule:
    """The BlockRule that walks the tree with `rule` at every node."""

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        p = prediction.probs
        num_lanes = p.shape[0]
        lanes = jnp.arange(num_lanes)
        if num_lanes == 1 or draft.q is None:
            stop = (lanes == 0).astype(p.dtype)
            return stop, p
        nodes = jax.vmap(trees.children, (None, 0, None))(
            draft.parents, lanes, rule.max_children
        )  # [1 + N, C]
        tokens = jnp.where(nodes >= 0, draft.tokens[nodes], -1)
        accept, residual = jax.vmap(rule.apply)(p, draft.q[nodes], tokens)
        refused = jnp.cumprod(1 - accept, -1)
        before = jnp.concatenate([jnp.ones_like(refused[:, :1]), refused[:, :-1]], -1)
        # Probability of entering each node from its parent, scattered to its lane.
        enter = jnp.zeros(num_lanes, p.dtype)
        lane = jnp.where(nodes >= 0, nodes + 1, num_lanes)
        enter = enter.at[lane].set(before * accept, mode="drop")
        parent = jnp.concatenate([jnp.zeros(1, jnp.int32), draft.parents + 1])

        def down(reach, lane):
            here = jnp.where(lane == 0, 1.0, reach[parent[lane]] * enter[lane])
            return reach.at[lane].set(here), None

        reach, _ = jax.lax.scan(down, jnp.zeros(num_lanes, p.dtype), lanes)
        return reach * refused[:, -1], residual

    return BlockRule(apply, is_lossless=rule.is_lossless)


def block_verification() -> BlockRule:
    """Verifies one chain of drafts as a whole.

    Sun et al., 2024, arXiv:2403.10444. Lossless, and never fewer tokens in expectation
    than token by token. Its proof needs draft noise that is fresh every round.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        p = prediction.probs
        num_nodes = p.shape[0] - 1
        if num_nodes == 0 or draft.q is None:
            return jnp.ones(1, p.dtype), p
        q = draft.q
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

    return BlockRule(apply, is_lossless=True)


def top_match(num_top: int) -> BlockRule:
    """Greedy matching relaxed: a node passes if it is among the best `num_top`.

    Blockwise parallel decoding's top-K criterion (Stern et al., 2018,
    arXiv:1811.03115), over one chain. The next token is the argmax. Lossy above 1.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        ids = prediction.top_ids
        num_lanes, vocab = ids.shape[0], prediction.logits.shape[-1]
        passes = (ids[:-1] == draft.tokens[:, None]).any(-1)
        leaf = jnp.cumprod(passes).sum()
        stop = (jnp.arange(num_lanes) == leaf).astype(prediction.logits.dtype)
        return stop, jax.nn.one_hot(ids[:, 0], vocab, dtype=stop.dtype)

    return BlockRule(apply, wants=("logits", f"top:{num_top}"))
