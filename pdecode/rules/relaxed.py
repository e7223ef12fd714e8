"""Lossy acceptance: what is accepted beyond the target's own law, and at what price.

Every rule says which limit of its knob gives an exact rule back. `tests/test_relaxed`
enumerates each and tells how far its law is from the target's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import trees
from pdecode.contracts import (
    BlockRule,
    Codes,
    Draft,
    Judge,
    Model,
    NodeRule,
    Prediction,
)
from pdecode.rules import accept
from pdecode.sampling import entropy

__all__ = [
    "always",
    "check_codes",
    "clusters",
    "coarse",
    "conditional",
    "grouped",
    "judged",
    "lantern",
    "longest",
    "nearest",
    "of_groups",
    "relaxed_law",
    "rollback",
    "shares",
    "top_match",
    "typical",
]


def top_match(num_top: int, max_gap: Any = None) -> BlockRule:
    """Greedy matching relaxed: a node passes if it is among the best `num_top`.

    Blockwise parallel decoding's top-K criterion (Stern et al., 2018,
    arXiv:1811.03115), over one chain. With `max_gap` it must also be at most that many
    nats less likely than the best one (SpecDec: Xia et al., 2022, arXiv:2203.16487).
    The next token is the argmax. Lossy above 1; with max_gap = 0 only best tokens pass.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        ids = prediction.top_ids
        num_lanes, vocab = ids.shape[0], prediction.logits.shape[-1]
        passes = (ids[:-1] == draft.tokens[:, None]).any(-1)
        if max_gap is not None:
            own = _of_nodes(draft, prediction.logits)
            passes &= prediction.logits[:-1].max(-1) - own <= max_gap
        leaf = jnp.cumprod(passes).sum()
        stop = (jnp.arange(num_lanes) == leaf).astype(prediction.logits.dtype)
        return stop, jax.nn.one_hot(ids[:, 0], vocab, dtype=stop.dtype)

    return BlockRule(apply, wants=("logits", f"top:{num_top}"), needs=("chain",))


def always() -> BlockRule:
    """All that a chain proposes is accepted, and the next token is the target's.

    What is proposed has to be worth it: nothing is verified. Lossy.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        leaf = jnp.cumprod(draft.tokens >= 0).sum()
        return _stop_at(leaf, prediction.probs), prediction.probs

    return BlockRule(apply, needs=("chain",))


def typical(epsilon: Any = 0.09, delta: Any = 0.3) -> BlockRule:
    """Typical acceptance: a node passes if p > min(epsilon, delta * exp(-H(p))).

    Medusa, Cai et al., 2024, arXiv:2401.10774. The longest path of nodes that pass
    wins, of equally long ones the likeliest; the next token is drawn from p. At
    temperature 0 it is greedy matching; with delta = 0 everything possible passes.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        p = prediction.probs
        log_probs = jnp.log(jnp.where(p > 0, p, 1))
        bar = jnp.minimum(epsilon, delta * jnp.exp(-entropy(log_probs)))
        chance, bar = _of_nodes(draft, p), bar[jnp.maximum(draft.parents + 1, 0)]
        leaf = longest(draft, chance > bar, jnp.log(jnp.maximum(chance, 1e-30)))
        return _stop_at(leaf, p), p

    return BlockRule(apply)


def conditional(slope: Any = 0.1, base: Any = 0.1, floor: Any = 0.01) -> BlockRule:
    """Conditional verification: a node passes if p >= min(base - slope * H(p), max p).

    AASD, 2025, arXiv:2505.13204, where `floor` is ours: beyond H = base / slope the bar
    would be negative. p is the raw law; the next token is drawn from the sampled one.
    With slope = 0 and base = 1 only the argmax passes.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(prediction.logits)
        p = jnp.exp(log_probs)
        bar = jnp.maximum(base - slope * entropy(log_probs), floor)
        bar = jnp.minimum(bar, p.max(-1))[jnp.maximum(draft.parents + 1, 0)]
        chance = _of_nodes(draft, p)
        leaf = longest(draft, chance >= bar, jnp.log(jnp.maximum(chance, 1e-30)))
        return _stop_at(leaf, p), prediction.probs

    return BlockRule(apply, wants=("logits", "probs"))


def rollback(threshold: Any) -> BlockRule:
    """BiLD: a node is cut if -log p > `threshold` and the target's argmax is another.

    Kim et al., 2023, arXiv:2302.07863, with the test at every position. p is the raw
    law; the next token is drawn from the sampled one. threshold = 0 is greedy matching.
    """

    def apply(draft: Draft, prediction: Prediction) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(prediction.logits)
        own = _of_nodes(draft, log_probs)
        most = log_probs.max(-1)[jnp.maximum(draft.parents + 1, 0)]
        passes = (-own <= threshold) | (own == most)
        return _stop_at(longest(draft, passes, own), log_probs), prediction.probs

    return BlockRule(apply, wants=("logits", "probs"))


def judged(rule: NodeRule, judge: Judge, threshold: Any = 0.5) -> BlockRule:
    """Judge decoding: a node is accepted by `rule`, or if the judge likes it.

    Bachmann et al., 2025, arXiv:2501.19309. The judge reads the target's hidden state
    at the node itself; its params are those of the role "judge". threshold = 1 is
    `rule`.
    """

    def apply(draft, prediction, params, hidden) -> tuple[Array, Array]:
        score = jax.nn.sigmoid(judge.apply(params, hidden[1:]))
        forced = score > threshold
        return accept.walk(rule, draft, prediction.probs, forced=forced)

    return BlockRule(apply, needs=rule.needs, role="judge")


def lantern(max_children: int = 1, *, delta: Any = None, ratio: Any = None) -> NodeRule:
    """A candidate x counts the mass of its nearest codes as its own.

    LANTERN (2024, arXiv:2410.03355) takes neighbours while their mass is at most
    `delta`, LANTERN++ (2025, arXiv:2502.06352) while p(x) grows by `ratio` at most:
    give one of them. p' is p with that mass moved to x, x is accepted with min(1, p'(x)
    / q(x)), and after a refusal p becomes norm((p' - q)+). delta = 0 and ratio = 1 are
    exact. The bound is each candidate's: what is emitted may be further off.
    """
    if (delta is None) == (ratio is None):
        raise ValueError(f"{delta=} and {ratio=}: give one of them")
    plain = accept.rejection(1)

    def apply(p, q, tokens, neighbours) -> tuple[Array, Array]:
        _check_size(neighbours.shape[0], p.shape[0])
        kept = []
        for c in range(max_children):
            moved, _ = relaxed_law(p, tokens[c], neighbours, delta, ratio)
            one, after = plain.apply(moved, q[c : c + 1], tokens[c : c + 1])
            kept.append(one[0])
            p = jnp.where((tokens[c] >= 0) & (q[c, tokens[c]] > 0), after, p)
        return jnp.stack(kept), p

    return NodeRule(apply, max_children, role="codes")


def relaxed_law(p: Array, token: Array, neighbours: Array, delta: Any, ratio: Any):
    """p [V] with the mass of the token's nearest codes moved to it, and that mass.

    `neighbours` int32 [V, K] are other codes, the nearest first; `delta` or `ratio` as
    in `lantern`.
    """
    token = jnp.maximum(token, 0)
    near = neighbours[token]
    mass = jnp.cumsum(p[near])
    budget = (ratio - 1) * p[token] if delta is None else delta
    # Rounding must not take a neighbour in where the budget is nothing.
    is_taken = (mass <= budget) & (mass > 0)
    taken = jnp.where(is_taken, p[near], 0).sum()
    emptied = p.at[near].multiply(jnp.where(is_taken, 0, 1).astype(p.dtype))
    return emptied.at[token].add(taken), taken


def nearest(latents: np.ndarray, num: int) -> np.ndarray:
    """int32 [V, num]: the other codes by distance of their vectors [V, E]."""
    if not 1 <= num < len(latents):
        raise ValueError(f"{num=} must lie in [1, {len(latents) - 1}], the other codes")
    squares = (latents**2).sum(1)
    distance = squares[:, None] + squares[None] - 2 * latents @ latents.T
    np.fill_diagonal(distance, -np.inf)
    return np.argsort(distance, 1, kind="stable")[:, 1 : num + 1].astype(np.int32)


def check_codes(codes: Codes, model: Model) -> None:
    """ValueError if `codes` are not those of the model's tokens."""
    if codes.size != model.vocab_size:
        raise ValueError(
            f"{codes.name} tell of {codes.size} tokens, but {model.name} has "
            f"{model.vocab_size}: give a row (of groups: a column) for every id"
        )


def _check_size(found: int, vocab_size: int) -> None:
    if found != vocab_size:
        raise ValueError(
            f"params of the role 'codes' tell of {found} tokens, but the law has "
            f"{vocab_size}"
        )


def grouped(size: int = 7, max_gap: Any = 0.15, max_distance: Any = None) -> NodeRule:
    """Grouped acceptance: x with min(1, p(C) / q(C)), C the tokens ranked around x.

    GSD, So et al., 2025, arXiv:2508.07747: C has `size` tokens on either side of x in
    the target's order whose p differs from p(x) by less than `max_gap`. With
    `max_distance` their codes must also lie at a squared distance below it from x's:
    params of the role "codes" are the codebook [V, D], and a token whose row is not
    finite is alone. After a refusal norm((p - q)+), which keeps no law of groups: a
    heuristic. Groups of one token (size, max_gap or max_distance 0) are plain
    rejection.
    """

    def apply(p: Array, q: Array, tokens: Array, *codebook) -> tuple[Array, Array]:
        token, law = jnp.maximum(tokens[0], 0), q[0]
        rank = jnp.argsort(jnp.argsort(p, stable=True), stable=True)
        near = jnp.abs(rank - rank[token]) <= size
        near &= jnp.abs(p - p[token]) < max_gap
        for codes in codebook:
            _check_size(codes.shape[0], p.shape[0])
            near &= ((codes - codes[token][None]) ** 2).sum(-1) < max_distance
        near |= jnp.arange(p.shape[0]) == token
        mine = jnp.where(near, p, 0).sum()
        its = jnp.where(near, law, 0).sum()
        is_real = (tokens[0] >= 0) & (law[token] > 0)
        kept = jnp.where(is_real, jnp.minimum(1, mine / jnp.where(its > 0, its, 1)), 0)
        rest = accept.normalised(jnp.maximum(p - law, 0), p)
        return kept[None], jnp.where(is_real, rest, p)

    return NodeRule(apply, 1, role=None if max_distance is None else "codes")


def clusters(codebook: np.ndarray, max_distance: float) -> np.ndarray:
    """float32 [G, V]: a partition of the tokens by their codes [V, D], for `coarse`.

    Token by token: one joins the first group whose first token lies at a squared
    distance below `max_distance`, or begins one. Rows that are not finite are alone.
    """
    codes = np.where(np.isfinite(codebook), codebook, np.nan)
    firsts: list[int] = []
    group = []
    for token, code in enumerate(codes):
        near = ((codes[firsts] - code) ** 2).sum(-1) < max_distance
        group.append(int(np.argmax(near)) if near.any() else len(firsts))
        if not near.any():
            firsts.append(token)
    return np.eye(len(firsts), dtype=np.float32)[:, group]


def coarse() -> NodeRule:
    """Acceptance of a token's group: exact for groups, not for tokens.

    PCG, 2025, arXiv:2511.13732. Params [G, V] of the role "codes" say how a token's
    mass is shared among groups (columns sum to 1, see `shares`): the draft's group k is
    drawn by its shares and accepted with min(1, P(k) / Q(k)), P and Q the laws of
    groups; after a refusal a group from norm((P - Q)+), and its token by p. The group
    emitted has the law P. A partition is the fixed groups of GSD (arXiv:2508.07747);
    groups of one token are plain rejection.
    """

    def apply(p, q, tokens, shares) -> tuple[Array, Array]:
        _check_size(shares.shape[1], p.shape[0])
        token = jnp.maximum(tokens[0], 0)
        shares = shares.astype(p.dtype)
        kept, rest = of_groups(shares @ p, shares @ q[0])
        is_real = (tokens[0] >= 0) & (q[0, token] > 0)
        mass = shares @ p
        within = shares * p[None] / jnp.where(mass > 0, mass, 1)[:, None]
        residual = jnp.where(is_real, rest @ within, p)
        return jnp.where(is_real, kept @ shares[:, token], 0)[None], residual

    return NodeRule(apply, 1, role="codes")


def of_groups(mine: Array, its: Array) -> tuple[Array, Array]:
    """Acceptance [G] of each group and the law [G] after a refusal."""
    kept = jnp.where(its > 0, jnp.minimum(1, mine / jnp.where(its > 0, its, 1)), 0)
    return kept, accept.normalised(jnp.maximum(mine - its, 0), mine)


def shares(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """float32 [V, V]: a group for every token, those of cosine above `threshold`.

    Column t shares token t equally among the groups that hold it, its own always.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    member = (unit @ unit.T > threshold) | np.eye(len(unit), dtype=bool)
    return (member / member.sum(0)).astype(np.float32)


def longest(draft: Draft, passes: Array, log_weight: Array) -> Array:
    """The deepest lane that only nodes in `passes` (bool [N]) lead to; one row.

    Of equally deep ones the one whose path has the largest sum of `log_weight` [N].
    """
    reach = trees.ancestors(draft.parents[None])
    depth = trees.depths(reach)[0]
    hit = jnp.pad(passes & (draft.tokens >= 0), (1, 0), constant_values=True)
    is_open = (hit[None] | ~reach[0]).all(-1)
    deepest = is_open & (depth == jnp.where(is_open, depth, -1).max())
    path = jnp.where(reach[0], jnp.pad(log_weight, (1, 0))[None], 0).sum(-1)
    return jnp.argmax(jnp.where(deepest, path, -jnp.inf)).astype(jnp.int32)


def _of_nodes(draft: Draft, values: Array) -> Array:
    """values [1 + N, V] of each node's token at its parent: [N]."""
    return values[jnp.maximum(draft.parents + 1, 0), jnp.maximum(draft.tokens, 0)]


def _stop_at(leaf: Array, like: Array) -> Array:
    return (jnp.arange(like.shape[0]) == leaf).astype(like.dtype)
