"""Acceptance rules by exact enumeration: one function proves (or refutes) each."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import trees
from pdecode.checks import acceptance
from pdecode.checks.acceptance import (
    all_drafts,
    context,
    exact_law,
    jitted,
    judged,
    law_of,
    total_variation,
)
from pdecode.contracts import BlockRule, Draft, NodeRule, Prediction, Sampling
from pdecode.rules import accept, bounds
from pdecode.sampling import law as sampled_law

VOCAB = 3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Filters of both laws: each leaves zeros in them.
FILTERS = {
    "none": Sampling(1.0),
    "top_k": Sampling(0.8, top_k=2),
    "top_p": Sampling(1.3, top_p=0.7),
    "min_p": Sampling(1.0, min_p=0.4),
    "greedy": Sampling(0.0),
}


def tables(seed, depth, filtered="none"):
    """Random target and drafter laws given the tokens so far, through a filter."""
    laws = acceptance.tables(seed, depth, VOCAB)
    if filtered == "none":
        return laws

    def through(laws):
        raw = jnp.log(jnp.array(list(laws.values())))
        return dict(zip(laws, np.asarray(sampled_law(raw, FILTERS[filtered]))))

    return tuple(map(through, laws))


def error(rule, topology, seed, filtered="none", **kw):
    """Total variation of what is emitted from the target's own law."""
    target, drafter = tables(seed, topology.max_depth, filtered)
    drafts, stop, residual = judged(rule, topology, target, drafter, **kw)
    np.testing.assert_allclose(stop.sum(1), 1, atol=1e-12)
    assert (stop > -1e-15).all() and (residual >= 0).all()
    law = law_of(topology, target, drafts, stop, residual)
    return total_variation(law, exact_law(target, topology.max_depth + 1))


TREES = [(1,), (1, 1), (1, 1, 1), (3,), (2, 1), (2, 2)]
# The second child of the first node has a child, nobody else: no level is full.
UNEVEN = trees.choices([(0,), (1,), (0, 0), (0, 1), (0, 1, 0)])


@functools.cache
def lossless(name, topology):
    """One rule of each kind and tree, so that its program is compiled once."""
    many = topology.max_children
    return {
        "rejection": lambda: accept.by_node(accept.rejection(many)),
        "k_seq": lambda: accept.by_node(accept.k_seq(many)),
        "k_seq_merged": lambda: accept.by_node(accept.k_seq(many), merges=True),
        "merged": lambda: accept.by_node(accept.rejection(many), merges=True),
        "traversal": accept.traversal_verification,
    }[name]()


@pytest.mark.parametrize("filtered", FILTERS)
@pytest.mark.parametrize(
    "topology", [*map(trees.expand, TREES), UNEVEN], ids=[*map(str, TREES), "uneven"]
)
@pytest.mark.parametrize("name", ["rejection", "traversal"])
def test_rules_for_any_draws_are_lossless(name, topology, filtered):
    rule = lossless(name, topology)
    for draws in ("iid", "in_turn", "greedy", "given"):
        assert error(rule, topology, 0, filtered, draws=draws) < 1e-12, draws


@pytest.mark.parametrize("filtered", FILTERS)
@pytest.mark.parametrize("branching", [(1, 1), (3,), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("name", ["k_seq", "k_seq_merged", "merged"])
def test_rules_for_independent_draws_are_lossless(name, branching, filtered):
    topology = trees.expand(branching)
    for seed in range(2):
        assert error(lossless(name, topology), topology, seed, filtered) < 1e-12


def test_k_seq_is_biased_for_draws_without_replacement():
    """Negative control, and why the family refuses the pair."""
    topology = trees.expand((3,))
    rule = lossless("k_seq", topology)
    assert error(rule, topology, 0, draws="in_turn") > 1e-3
    assert rule.needs == ("iid",)


BLOCK = accept.block_verification()


@pytest.mark.parametrize("filtered", FILTERS)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_block_verification_is_lossless(length, filtered):
    for seed in range(3):
        assert error(BLOCK, trees.chain(length), seed, filtered) < 1e-12
    assert error(BLOCK, trees.chain(length), 0, filtered, draws="given") < 1e-12


def expected_length(rule, topology, seed, draws="iid", target=None, drafter=None):
    """Mean accepted length over all drafts, from the rule's stop probabilities."""
    if target is None:
        target, drafter = tables(seed, topology.max_depth)
    drafts = list(all_drafts(topology, drafter, draws))
    nodes = range(-1, topology.num_nodes)
    p = [[target[context(topology, d[0], n)] for n in nodes] for d in drafts]
    batch = Draft(
        jnp.array([d[0] for d in drafts], jnp.int32),
        jnp.array([topology.parents] * len(drafts), jnp.int32),
        q=jnp.array([d[2] for d in drafts]),
    )
    stop, _ = jitted(rule)(batch, Prediction(probs=jnp.array(p)))
    depths = np.array([0, *topology.depths])
    return float(np.array([d[1] for d in drafts]) @ np.asarray(stop) @ depths)


def test_block_and_traversal_verification_accept_no_less():
    chain, tree = trees.chain(2), trees.expand((2, 1))
    for seed in range(6):
        by_token = expected_length(lossless("rejection", chain), chain, seed)
        block = expected_length(BLOCK, chain, seed)
        climbed = expected_length(lossless("traversal", chain), chain, seed)
        assert block >= by_token - 1e-12
        assert abs(climbed - block) < 1e-12  # on a chain they are one rule
        for draws in ("iid", "in_turn"):
            by_node = expected_length(lossless("rejection", tree), tree, seed, draws)
            climbed = expected_length(lossless("traversal", tree), tree, seed, draws)
            assert climbed >= by_node - 1e-12


def test_no_rule_accepts_more_than_the_optimum_and_greedy_drafts_reach_theirs():
    """And the order of K-SEQ, multi-round rejection and the optimum, n = 3."""
    topology = trees.expand((3,))
    seen = []
    for seed in range(6):
        target, drafter = tables(seed, 1)
        p, q = target[()], drafter[()]
        best = {
            "iid": bounds.optimal_acceptance(p, q, 3),
            "in_turn": bounds.optimal_acceptance(p, q, 3, replacement=False),
            "greedy": bounds.greedy_acceptance(p, q, 3),
        }
        pairs = [("rejection", draws) for draws in best]
        got = {
            (name, draws): expected_length(
                lossless(name, topology), topology, seed, draws
            )
            for name, draws in [*pairs, ("k_seq", "iid"), ("traversal", "in_turn")]
        }
        for (name, draws), value in got.items():
            assert value <= best[draws] + 1e-9, (name, draws)
        assert abs(got["rejection", "greedy"] - best["greedy"]) < 1e-12
        seen.append([got["rejection", "iid"], got["k_seq", "iid"], best["iid"]])
    mean = np.mean(seen, 0)
    assert mean[0] < mean[1] < mean[2]


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_the_least_cut(seed):
    """Against all subsets, and against a linear program over acceptances."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4) * 0.6), rng.dirichlet(np.ones(4) * 0.6)
    for num, replacement in ((1, True), (2, True), (3, True), (2, False), (3, False)):
        laws = {}
        for draws in itertools.product(range(4), repeat=num):
            rest, weight = q.copy(), 1.0
            for token in draws:
                weight *= rest[token]
                if not replacement and rest[token] > 0:
                    rest[token] = 0
                    rest = rest / rest.sum() if rest.sum() > 0 else rest
            members = frozenset(draws)
            laws[members] = laws.get(members, 0.0) + weight
        subsets = itertools.chain.from_iterable(
            itertools.combinations(range(4), size) for size in range(5)
        )
        cut = min(
            sum(p[t] for t in subset)
            + sum(w for s, w in laws.items() if not s <= set(subset))
            for subset in subsets
        )
        found = bounds.optimal_acceptance(p, q, num, replacement=replacement)
        assert abs(found - cut) < 1e-9
        if num == 1:
            assert abs(found - np.minimum(p, q).sum()) < 1e-12


def test_k_seq_accepts_as_its_formula_says():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(VOCAB)), rng.dirichlet(np.ones(VOCAB))
    one = accept.k_seq(1).apply(jnp.array(p), jnp.array(q[None]), jnp.array([1]))
    plain = accept.rejection(1).apply(jnp.array(p), jnp.array(q[None]), jnp.array([1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, plain)
    same = jnp.array([q] * 2)
    kept, _ = accept.k_seq(2).apply(jnp.array(q), same, jnp.array([0, 2]))
    np.testing.assert_allclose(kept, 1, atol=1e-12)  # p = q: the first is taken


def test_one_child_accepts_with_one_less_total_variation():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    rule = accept.rejection()
    kept = sum(
        q[x] * rule.apply(jnp.array(p), jnp.array(q[None]), jnp.array([x]))[0][0]
        for x in range(6)
    )
    assert abs(float(kept) - np.minimum(p, q).sum()) < 1e-12


# Negative controls: the same enumeration must refuse each of these.


def resample_from_p(max_children=1):
    """Emits from p after a refusal instead of from the residual."""
    right = accept.rejection(max_children)

    def apply(p, q, tokens):
        return right.apply(p, q, tokens)[0], p

    return accept.by_node(NodeRule(apply, max_children))


def residual_not_renormalised():
    def apply(p, q, tokens):
        kept, _ = accept.rejection().apply(p, q, tokens)
        residual = jnp.where(tokens[0] >= 0, jnp.maximum(p - q[0], 0), p)
        return kept, residual

    return accept.by_node(NodeRule(apply, 1))


def block_with_token_residual():
    """Block verification that forgets its weight: residual norm((p - q)+)."""
    right = accept.block_verification()

    def apply(draft, prediction):
        p = prediction.probs
        plain = jax.vmap(accept.normalised)(jnp.maximum(p[:-1] - draft.q, 0), p[:-1])
        return right.apply(draft, prediction)[0], jnp.concatenate([plain, p[-1:]])

    return BlockRule(apply)


@pytest.mark.parametrize(
    "rule",
    [resample_from_p(), residual_not_renormalised(), block_with_token_residual()],
)
def test_wrong_rules_are_caught(rule):
    assert error(rule, trees.chain(2), 0) > 1e-3


def test_residual_of_an_earlier_sibling_is_needed():
    """Trying the second child against p instead of the residual is biased."""

    def apply(p, q, tokens):
        right = accept.rejection(2)
        first = accept.rejection(1).apply(p, q[:1], tokens[:1])[0]
        second = accept.rejection(1).apply(p, q[1:], tokens[1:])[0]
        return jnp.concatenate([first, second]), right.apply(p, q, tokens)[1]

    rule = accept.by_node(NodeRule(apply, 2))
    assert error(rule, trees.expand((2,)), 0) > 1e-3


def slow_traversal(update):
    """Traversal verification by recursion over one draft; `update(S, w, q(x))`."""

    def apply(draft, prediction):
        tokens, parents = np.asarray(draft.tokens), np.asarray(draft.parents)
        p = np.array(prediction.probs)
        q, stop, alive = np.asarray(draft.q), np.zeros(len(p)), [1.0]

        def climb(lane, weight):
            for node in np.flatnonzero((parents == lane - 1) & (tokens >= 0)):
                drawn = q[node, tokens[node]]
                climb(node + 1, min(1.0, weight * p[lane, tokens[node]] / drawn))
                rest = np.maximum(weight * p[lane] - q[node], 0)
                if rest.sum() > 0:
                    p[lane] = rest / rest.sum()
                if lane > 0:  # the root keeps 1: something is emitted
                    weight = update(rest.sum(), weight, drawn)
            stop[lane] = alive[0] * weight
            alive[0] -= stop[lane]

        climb(0, 1.0)
        return stop, p

    return apply


def test_traversal_is_the_recursion_and_its_wrong_update_is_biased():
    topology = UNEVEN
    target, drafter = tables(3, topology.max_depth)
    right = slow_traversal(lambda rest, weight, drawn: rest / (rest + 1 - weight))
    for tokens, _, q in list(all_drafts(topology, drafter, "in_turn"))[::7]:
        nodes = range(-1, len(tokens))
        p = [target.get(context(topology, tokens, n), np.eye(3)[0]) for n in nodes]
        draft = Draft(jnp.array(tokens), jnp.array(topology.parents), q=jnp.array(q))
        prediction = Prediction(probs=jnp.array(p))
        stop, residual = lossless("traversal", topology).apply(draft, prediction)
        slow_stop, slow_residual = right(draft, prediction)
        np.testing.assert_allclose(stop, slow_stop, atol=1e-12)
        reached = slow_stop > 1e-9
        np.testing.assert_allclose(residual[reached], slow_residual[reached], atol=1e-9)

    # Seen in public code: the parent keeps S / (1 - q(x)).
    def public(rest, weight, drawn):
        return min(1.0, rest / (1 - drawn)) if drawn < 1 else 1.0

    tree = trees.expand((1, 2))
    assert error(slow_traversal(lambda s, w, q: s / (s + 1 - w)), tree, 0) < 1e-12
    assert error(slow_traversal(public), tree, 0) > 1e-3


def test_absent_nodes_are_never_accepted():
    draft = Draft(jnp.array([-1, 2]), jnp.array([-1, 0]), q=jnp.zeros((2, VOCAB)))
    p = jnp.array(np.random.default_rng(0).dirichlet(np.ones(VOCAB), 3))
    rules = accept.by_node(accept.rejection()), accept.by_node(accept.k_seq(1))
    for rule in (*rules, BLOCK, accept.traversal_verification()):
        stop, residual = rule.apply(draft, Prediction(probs=p))
        np.testing.assert_allclose(stop, [1, 0, 0], atol=1e-12)
        np.testing.assert_allclose(residual[0], p[0], atol=1e-12)
