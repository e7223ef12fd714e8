"""Acceptance rules by exact enumeration: one function proves (or refutes) each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import trees
from pdecode.contracts import BlockRule, Draft, NodeRule, Prediction
from pdecode.rules import accept

VOCAB = 3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def tables(seed, depth):
    """Random target and drafter laws given the tokens so far: dict prefix -> [V]."""
    rng = np.random.default_rng(seed)
    target, drafter = {}, {}
    for size in range(depth + 2):
        for prefix in itertools.product(range(VOCAB), repeat=size):
            target[prefix] = rng.dirichlet(np.ones(VOCAB) * 0.7)
            drafter[prefix] = rng.dirichlet(np.ones(VOCAB) * 0.7)
    return target, drafter


def context(topology, tokens, node):
    """Tokens from the root's child to `node`; () for the root."""
    path = []
    while node >= 0:
        path.append(int(tokens[node]))
        node = topology.parents[node]
    return tuple(reversed(path))


def all_drafts(topology, drafter, replacement):
    """Every (tokens, probability, q [N, V]) that sampling the tree can give."""

    def extend(node, tokens, weight, q):
        if node == topology.num_nodes:
            yield tokens, weight, np.array(q)
            return
        law = drafter[context(topology, tokens, topology.parents[node])].copy()
        if not replacement:
            for elder in range(node):
                if topology.parents[elder] == topology.parents[node]:
                    law[tokens[elder]] = 0
            law = law / law.sum() if law.sum() > 0 else law
        if law.sum() == 0:
            yield from extend(node + 1, [*tokens, -1], weight, [*q, law])
            return
        for token in range(VOCAB):
            if law[token] > 0:
                yield from extend(
                    node + 1, [*tokens, token], weight * law[token], [*q, law]
                )

    yield from extend(0, [], 1.0, [])


def emitted_law(rule, topology, target, drafter, *, replacement=True):
    """Law over strings of depth + 1 tokens: what one round emits, then the target."""
    depth = topology.max_depth
    law = {s: 0.0 for s in itertools.product(range(VOCAB), repeat=depth + 1)}
    drafts = list(all_drafts(topology, drafter, replacement))
    nodes = range(topology.num_nodes)
    batch = Draft(
        tokens=jnp.array([d[0] for d in drafts], jnp.int32),
        parents=jnp.array([topology.parents] * len(drafts), jnp.int32),
        q=jnp.array([d[2] for d in drafts]),
    )
    dead = np.full(VOCAB, 1 / VOCAB)  # context of an absent node: never reached
    p = np.array(
        [
            [target.get(context(topology, d[0], lane), dead) for lane in [-1, *nodes]]
            for d in drafts
        ]
    )
    stop, residual = jax.jit(jax.vmap(rule.apply))(
        batch, Prediction(probs=jnp.asarray(p))
    )
    stop, residual = np.asarray(stop), np.asarray(residual)
    np.testing.assert_allclose(stop.sum(1), 1, atol=1e-12)
    for (tokens, weight, _), stops, residuals in zip(drafts, stop, residual):
        for lane in [-1, *nodes]:
            if stops[lane + 1] == 0:
                continue
            path = context(topology, tokens, lane)
            for token in range(VOCAB):
                mass = weight * stops[lane + 1] * residuals[lane + 1, token]
                spread(law, target, (*path, token), mass, depth + 1)
    return law


def spread(law, target, prefix, mass, length):
    """Adds `mass` to every completion of `prefix` by the target's own law."""
    if mass == 0:
        return
    if len(prefix) == length:
        law[prefix] += mass
        return
    for token in range(VOCAB):
        spread(law, target, (*prefix, token), mass * target[prefix][token], length)


def exact_law(target, length):
    law = {s: 0.0 for s in itertools.product(range(VOCAB), repeat=length)}
    spread(law, target, (), 1.0, length)
    return law


def error(rule, topology, seed, **kw):
    target, drafter = tables(seed, topology.max_depth)
    law = emitted_law(rule, topology, target, drafter, **kw)
    exact = exact_law(target, topology.max_depth + 1)
    return 0.5 * sum(abs(law[s] - exact[s]) for s in law)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("branching", [(1,), (1, 1), (1, 1, 1), (3,), (2, 1), (2, 2)])
@pytest.mark.parametrize("replacement", [True, False])
def test_rejection_is_lossless(branching, replacement, seed):
    topology = trees.expand(branching)
    rule = accept.by_node(accept.rejection(topology.max_children))
    assert error(rule, topology, seed, replacement=replacement) < 1e-12


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_block_verification_is_lossless(length, seed):
    topology = trees.chain(length)
    assert error(accept.block_verification(), topology, seed) < 1e-12


def expected_length(rule, topology, seed):
    """Mean accepted length over all drafts, from the rule's stop probabilities."""
    target, drafter = tables(seed, topology.max_depth)
    mean = 0.0
    for tokens, weight, q in all_drafts(topology, drafter, True):
        p = [target[context(topology, tokens, n)] for n in range(-1, len(tokens))]
        draft = Draft(jnp.array(tokens), jnp.array(topology.parents), q=jnp.asarray(q))
        stop, _ = rule.apply(draft, Prediction(probs=jnp.array(p)))
        mean += weight * float((np.asarray(stop) * np.arange(len(tokens) + 1)).sum())
    return mean


@pytest.mark.parametrize(
    "seed",
    [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 4))],
)
def test_block_verification_accepts_no_less(seed):
    chain = trees.chain(2)
    token_wise = accept.by_node(accept.rejection())
    block = expected_length(accept.block_verification(), chain, seed)
    assert block >= expected_length(token_wise, chain, seed) - 1e-12


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


def test_absent_nodes_are_never_accepted():
    draft = Draft(jnp.array([-1, 2]), jnp.array([-1, 0]), q=jnp.zeros((2, VOCAB)))
    p = jnp.array(np.random.default_rng(0).dirichlet(np.ones(VOCAB), 3))
    for rule in (accept.by_node(accept.rejection()), accept.block_verification()):
        stop, residual = rule.apply(draft, Prediction(probs=p))
        np.testing.assert_allclose(stop, [1, 0, 0], atol=1e-12)
        np.testing.assert_allclose(residual[0], p[0], atol=1e-12)
