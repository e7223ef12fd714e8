"""Lossy acceptance by enumeration: exact limits, bounds, and how far off each is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_accept import VOCAB, all_drafts, context, error, jitted, tables

from pdecode import methods, prompts, trees
from pdecode.contracts import Codes, Draft, Judge, NodeRule, Prediction
from pdecode.decode import run
from pdecode.models import toy
from pdecode.rules import accept, relaxed

CHAIN, TREE = trees.chain(2), trees.expand((2, 1))
LATENTS = np.random.default_rng(0).normal(size=(VOCAB, 2))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def with_params(rule, params):
    """The BlockRule of a NodeRule that reads `params`, bound to them."""

    def apply(p, q, tokens):
        return rule.apply(p, q, tokens, params)

    return accept.by_node(NodeRule(apply, rule.max_children))


def lantern(num_children, **kw):
    near = jnp.asarray(relaxed.nearest(LATENTS, VOCAB - 1))
    return with_params(relaxed.lantern(num_children, **kw), near)


def coarse(threshold):
    shares = jnp.asarray(relaxed.shares(LATENTS, threshold), jnp.float64)
    return with_params(relaxed.coarse(), shares)


EXACT = {
    "lantern": lambda: (lantern(2, delta=0.0), TREE),
    "lantern_plus": lambda: (lantern(2, ratio=1.0), TREE),
    "coarse": lambda: (coarse(1.0), CHAIN),
    "grouped": lambda: (accept.by_node(relaxed.grouped(0)), CHAIN),
    "codebook": lambda: (
        with_params(relaxed.grouped(2, 1.0, 0.0), jnp.asarray(LATENTS)), CHAIN
    ),
    "partition": lambda: (
        with_params(relaxed.coarse(), jnp.asarray(relaxed.clusters(LATENTS, 0))), CHAIN
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_the_limit_of_the_knob_is_exact(name):
    rule, topology = EXACT[name]()
    for draws in ("iid", "in_turn", "given"):
        assert error(rule, topology, 1, draws=draws) < 1e-12


# Total variation of two or three tokens from the target's law at the default knobs,
# the mean of three pairs of laws: what each costs. Told, and bounded on both sides.
LOSSY = {
    "lantern": (lambda: lantern(2, delta=0.3), TREE, "iid"),
    "lantern_plus": (lambda: lantern(2, ratio=2.0), TREE, "iid"),
    "coarse": (lambda: coarse(0.0), CHAIN, "iid"),
    "grouped": (lambda: accept.by_node(relaxed.grouped(1, 1.0)), CHAIN, "iid"),
    "typical": (relaxed.typical, TREE, "given"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_lossy_says_so_and_tells_its_distance(name, record_property, capsys):
    make, topology, draws = LOSSY[name]
    rule = make()
    assert not rule.is_lossless
    distance = np.mean([error(rule, topology, s, draws=draws) for s in range(3)])
    record_property("total_variation", float(distance))
    with capsys.disabled():
        print(f" {name}: total variation {distance:.3f}", end="")
    assert 1e-3 < distance < 1


def accepted(rule, topology, seed, draws="iid", **more):
    """Mean accepted length, with logits as the raw law."""
    target, drafter = tables(seed, topology.max_depth)
    drafts = list(all_drafts(topology, drafter, draws))
    nodes = range(-1, topology.num_nodes)
    p = jnp.array([[target[context(topology, d[0], n)] for n in nodes] for d in drafts])
    batch = Draft(
        jnp.array([d[0] for d in drafts], jnp.int32),
        jnp.array([topology.parents] * len(drafts), jnp.int32),
        q=jnp.array([d[2] for d in drafts]),
    )
    stop, _ = jitted(rule)(batch, Prediction(probs=p, logits=jnp.log(p)))
    depths = np.array([0, *topology.depths])
    weights = np.array([d[1] for d in drafts])
    return float(weights @ np.asarray(stop) @ depths), batch, p, np.asarray(stop)


def test_more_is_accepted_as_the_knobs_loosen():
    ladders = [
        [lantern(1, delta=d) for d in (0.0, 0.1, 0.3, 0.8)],
        [lantern(1, ratio=r) for r in (1.0, 1.5, 3.0, 100.0)],
        [coarse(t) for t in (1.0, -1.0)],
        [relaxed.rollback(t) for t in (0.0, 1.0, 2.0, 1e9)],
        [relaxed.typical(0.3, d) for d in (0.9, 0.5, 0.2, 0.0)],
        [relaxed.conditional(0.1, b, 0.01) for b in (1.0, 0.6, 0.3, 0.0)],
    ]
    for rules in ladders:
        lengths = [accepted(rule, CHAIN, 2)[0] for rule in rules]
        assert lengths == sorted(lengths) and lengths[-1] > lengths[0] + 1e-3
    # One group, any p, no bar: all is accepted.
    for rules in (ladders[2], ladders[3], ladders[4]):
        assert abs(accepted(rules[-1], CHAIN, 2)[0] - 2) < 1e-6


def test_each_candidate_stays_within_its_bound():
    """p' is within delta of p, p'(x) within ratio of p(x): against a plain search."""
    rng = np.random.default_rng(3)
    latents = rng.normal(size=(8, 3))
    near = jnp.asarray(relaxed.nearest(latents, 7))
    slow = np.argsort(((latents[:, None] - latents[None]) ** 2).sum(-1), 1)[:, 1:]
    np.testing.assert_array_equal(near, slow)
    moved = 0
    for token in range(8):
        p = jnp.asarray(rng.dirichlet(np.ones(8)))
        for delta, ratio in ((0.2, None), (None, 1.5)):
            law, mass = relaxed.relaxed_law(p, jnp.array(token), near, delta, ratio)
            assert abs(float(law.sum()) - 1) < 1e-12 and (law >= 0).all()
            budget = delta if ratio is None else (ratio - 1) * float(p[token])
            assert abs(0.5 * float(jnp.abs(law - p).sum()) - float(mass)) < 1e-12
            assert mass <= budget + 1e-12
            best, total = 0.0, 0.0  # the largest run of neighbours within budget
            for other in np.asarray(near[token]):
                total += float(p[other])
                best = total if total <= budget else best
            assert abs(best - float(mass)) < 1e-12
            moved += float(mass) > 0
    assert moved > 4


def test_what_is_emitted_may_be_further_off_than_the_candidates_bound():
    """LANTERN's delta bounds a candidate, not the law: the claim would be false."""
    worst = max(error(lantern(1, delta=0.1), trees.chain(1), s) for s in range(12))
    assert worst > 0.1


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.7])
def test_groups_have_the_targets_law_and_tokens_do_not(threshold):
    rng = np.random.default_rng(5)
    off = []
    for _ in range(5):
        p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
        shares = relaxed.shares(rng.normal(size=(6, 2)), threshold).astype(np.float64)
        shares /= shares.sum(0)
        kept, rest = relaxed.of_groups(jnp.array(shares @ p), jnp.array(shares @ q))
        through = shares * q[None] * np.asarray(kept)[:, None]  # group, token
        groups = through.sum(1) + (1 - through.sum()) * np.asarray(rest)
        np.testing.assert_allclose(groups, shares @ p, atol=1e-12)
        # The rule tells the same, summed over groups.
        rule = relaxed.coarse()
        law = np.zeros(6)
        for token in range(6):
            one, residual = rule.apply(
                jnp.array(p), jnp.array(q[None]), jnp.array([token]), jnp.array(shares)
            )
            law[token] += q[token] * float(one[0])
            law += q[token] * (1 - float(one[0])) * np.asarray(residual)
            np.testing.assert_allclose(
                q[token] * float(one[0]), through[:, token].sum(), atol=1e-12
            )
        assert abs(law.sum() - 1) < 1e-12
        off.append(0.5 * np.abs(law - p).sum())
    assert max(off) > 0.01


def test_a_partition_keeps_its_groups_law_and_the_heuristic_does_not():
    """Groups {0, 1}, {2}: of GSD's two forms only the fixed one is exact for groups."""
    shares = np.array([[1.0, 1, 0], [0, 0, 1]])
    fixed = with_params(relaxed.coarse(), jnp.asarray(shares))
    window = accept.by_node(relaxed.grouped(1, 1.0))
    off = {}
    for name, rule in (("fixed", fixed), ("window", window)):
        off[name] = 0.0
        for seed in range(4):
            target, drafter = tables(seed, 1)
            p, q = target[()], drafter[()]
            law = np.zeros(VOCAB)
            for token in range(VOCAB):
                draft = Draft(jnp.array([token]), jnp.array([-1]), q=jnp.array(q[None]))
                stop, residual = rule.apply(draft, Prediction(probs=jnp.array([p, p])))
                law[token] += q[token] * float(stop[1])
                law += q[token] * float(stop[0]) * np.asarray(residual[0])
            gap = np.abs(shares @ law - shares @ p).max()
            off[name] = max(off[name], gap)
    assert off["fixed"] < 1e-12 and off["window"] > 0.01


def group_gaps(rule, shares, seed):
    """How far the groups of a round's first and second token are from the target's law.

    The second is held against its law behind the first, as it was accepted.
    """
    target, drafter = tables(seed, 2)
    laws = [target[()], *(target[(t,)] for t in range(VOCAB))]
    first = np.zeros(VOCAB)
    second, reached = np.zeros((VOCAB, VOCAB)), np.zeros(VOCAB)
    for tokens, weight, q in all_drafts(CHAIN, drafter, "iid"):
        one, _ = tokens
        p = [target[context(CHAIN, tokens, node)] for node in range(-1, 2)]
        draft = Draft(jnp.array(tokens), jnp.array([-1, 0]), q=jnp.array(q))
        stop, rest = jitted(rule)(
            jax.tree.map(lambda leaf: leaf[None], draft),
            Prediction(probs=jnp.array([p])),
        )
        stop, rest = np.asarray(stop[0]), np.asarray(rest[0])
        first += weight * stop[0] * rest[0]
        first[one] += weight * stop[1:].sum()
        reached[one] += weight * stop[1:].sum()
        second[one] += weight * stop[1] * rest[1]
        second[one, tokens[1]] += weight * stop[2]
    behind = reached[:, None] * np.stack(laws[1:])
    return (
        np.abs(shares @ (first - laws[0])).max(),
        np.abs((second - behind) @ shares.T).max(),
    )


def test_groups_of_a_codebook_have_the_targets_law_where_they_are_fixed():
    """Of a codebook's groups those of a partition; the paper's, around x, do not."""
    found = {"fixed": 0.0, "around": 0.0}
    codebook = np.array([[0.0, 0.0], [0.4, 0.0], [3.0, 0.0]])
    shares = relaxed.clusters(codebook, 0.5)
    np.testing.assert_array_equal(shares, [[1, 1, 0], [0, 0, 1]])
    rules = {
        "fixed": with_params(relaxed.coarse(), jnp.asarray(shares, jnp.float64)),
        "around": with_params(relaxed.grouped(2, 1.0, 10.0), jnp.asarray(codebook)),
    }
    for name, rule in rules.items():
        for seed in range(3):
            gaps = group_gaps(rule, shares, seed)
            found[name] = max(found[name], *gaps)
    assert found["fixed"] < 1e-12 and found["around"] > 1e-3, found


def test_the_distance_between_codes_bounds_a_group():
    """Against a plain search; without a code, or at distance 0, tokens are alone."""
    draw = np.random.default_rng(5)
    codebook = draw.normal(size=(8, 2))
    codebook[6] = np.nan
    kept = {}
    for limit in (0.0, 1.5, 1e9):
        kept[limit] = []
        for token in range(8):
            p, q = draw.dirichlet(np.ones(8)), draw.dirichlet(np.ones(8))
            got, _ = relaxed.grouped(2, 0.2, limit).apply(
                jnp.asarray(p), jnp.asarray(q[None]), jnp.array([token]), codebook
            )
            rank = np.argsort(np.argsort(p, kind="stable"), kind="stable")
            group = [
                other
                for other in range(8)
                if other == token
                or (
                    abs(rank[other] - rank[token]) <= 2
                    and abs(p[other] - p[token]) < 0.2
                    and ((codebook[other] - codebook[token]) ** 2).sum() < limit
                )
            ]
            wanted = min(1, p[group].sum() / q[group].sum())
            np.testing.assert_allclose(float(got[0]), wanted, atol=1e-12)
            assert group == [token] or (limit > 0 and token != 6 and 6 not in group)
            kept[limit].append(len(group))
    assert sum(kept[1e9]) > sum(kept[1.5]) > sum(kept[0.0]) == 8
    # A partition: alone too, and one group of all that is near.
    made = relaxed.clusters(codebook, 1e9)
    assert made.shape == (2, 8) and made[1].tolist() == [0] * 6 + [1, 0]
    np.testing.assert_array_equal(relaxed.clusters(codebook, 0.0), np.eye(8))


def test_typical_accepts_what_its_bar_says_and_the_likeliest_of_the_longest():
    rule = relaxed.typical(0.25, 0.6)
    for seed in range(4):
        _, batch, p, stop = accepted(rule, TREE, seed)
        for row in range(0, batch.tokens.shape[0], 3):
            tokens, law = np.asarray(batch.tokens[row]), np.asarray(p[row])
            reach, score = [True], [0.0]
            for node, above in enumerate(TREE.parents):
                own = law[above + 1]
                bar = min(0.25, 0.6 * np.exp((own * np.log(own)).sum()))
                reach.append(reach[above + 1] and own[tokens[node]] > bar)
                score.append(score[above + 1] + np.log(own[tokens[node]]))
            depth = np.array([0, *TREE.depths])
            longest = max(d for d, ok in zip(depth, reach) if ok)
            ends = [n for n in range(len(depth)) if reach[n] and depth[n] == longest]
            assert stop[row].argmax() in ends
            assert abs(score[stop[row].argmax()] - max(score[n] for n in ends)) < 1e-12


def test_a_judge_only_adds():
    judge = Judge(lambda params, hidden: hidden @ params)
    hidden = jnp.array(np.random.default_rng(1).normal(size=(3, 4)))
    weight = jnp.array([1.0, -1.0, 0.5, 0.0])
    target, drafter = tables(0, 2)
    plain = accept.by_node(accept.rejection())
    moved = 0
    for tokens, _, q in all_drafts(CHAIN, drafter, "iid"):
        p = jnp.array([target[context(CHAIN, tokens, n)] for n in range(-1, 2)])
        draft = Draft(jnp.array(tokens), jnp.array(CHAIN.parents), q=jnp.array(q))
        expected = plain.apply(draft, Prediction(probs=p))
        off, on = (
            relaxed.judged(accept.rejection(), judge, level).apply(
                draft, Prediction(probs=p), weight, hidden
            )
            for level in (1.0, 0.5)
        )
        jax.tree.map(np.testing.assert_array_equal, expected, off)
        likes = np.asarray(jax.nn.sigmoid(hidden @ weight))[1:] > 0.5
        before, after = (np.cumsum(s[0][::-1])[::-1] for s in (expected, on))
        assert (after >= before - 1e-12).all()
        if likes[0]:
            assert abs(float(on[0][0])) < 1e-12  # the first node is never refused
        moved += (after > before + 1e-6).any()
    assert moved


# In the loop: the limits of the lossy methods are whole decodes.
TARGET = toy.chain(11, 4, 20)
DRAFTER = toy.chain(12, 4, 20)
MODEL = toy.make_model(4, 20)
PROMPT = prompts.from_rows(
    [[0, 1], [2], [3, 3, 1], [1]], max_new_tokens=[12, 10, 12, 12]
)


@functools.cache
def decoded(name, models=2, role=None, temperature=0.0, **kw):
    method = getattr(methods, name)
    known = {"max_new_tokens": 12, **kw}
    params = {"model": TARGET, "drafter": DRAFTER}
    with jax.enable_x64(False):
        return run(
            method, (MODEL,) * models, params, PROMPT, jax.random.key(0),
            knobs={"temperature": temperature}, **known,
        )  # fmt: skip


def test_the_limits_of_bild_are_the_target_and_the_drafter():
    def bild(**kw):
        return decoded("bild", num_draft=3, **kw)

    greedy, _ = decoded("autoregressive", 1)
    for limit in ({"fallback_threshold": 2.0}, {"rollback_threshold": 0.0}):
        out, _ = bild(**limit)
        np.testing.assert_array_equal(out.tokens, greedy.tokens)
    out, stats = bild(fallback_threshold=2.0)
    np.testing.assert_array_equal(stats.num_calls, stats.num_committed)
    # All drafts kept: three tokens of the drafter's argmax, then one of the target's.
    out, stats = bild(fallback_threshold=0.0, rollback_threshold=1e9)
    np.testing.assert_array_equal(stats.num_calls, -(-np.asarray(out.lengths) // 4))
    moves = {"drafter": DRAFTER.moves, "target": TARGET.moves}
    for row in range(4):
        start = int(out.start[row])
        for nth in range(int(out.lengths[row])):
            place = start + nth
            who = "target" if nth % 4 == 3 else "drafter"
            step = moves[who][place, place][int(out.tokens[row, place - 1])]
            assert int(out.tokens[row, place]) == int(np.argmax(step))
    # Between the limits the output is neither: the knobs do something.
    out, _ = bild(fallback_threshold=0.0, rollback_threshold=2.0)
    assert (out.tokens != greedy.tokens).any()


def test_greedy_limits_of_the_bars():
    greedy, _ = decoded("autoregressive", 1)
    out, _ = decoded("conditional_verification", 1, slope=0.0, base=1.0, num_draft=3)
    np.testing.assert_array_equal(out.tokens, greedy.tokens)
    out, _ = decoded("conditional_verification", 1, base=0.0, floor=0.0, num_draft=3)
    assert (out.tokens != greedy.tokens).any()
    out, _ = decoded("typical_acceptance", num_nodes=6, width=3, max_depth=3)
    np.testing.assert_array_equal(out.tokens, greedy.tokens)


def test_bad_values_are_named():
    for kw in ({}, {"delta": 0.1, "ratio": 2.0}):
        with pytest.raises(ValueError, match="give one of them"):
            relaxed.lantern(1, **kw)
    with pytest.raises(ValueError, match="the other codes"):
        relaxed.nearest(LATENTS, VOCAB)
    codes = Codes(MODEL.vocab_size)
    for make in (methods.lantern, methods.pcg):
        with pytest.raises(ValueError, match="codes tell of 2 tokens, but"):
            make(MODEL, MODEL, Codes(2), max_new_tokens=4)
    for make in (methods.gsd_codebook, methods.gsd_partition):
        with pytest.raises(ValueError, match="codes tell of 2 tokens, but"):
            make(MODEL, Codes(2), max_new_tokens=4)
    p, one = jnp.ones(4) / 4, jnp.zeros(1, jnp.int32)
    for rule, params in (
        (relaxed.grouped(1, 1.0, 0.5), jnp.ones((3, 2))),
        (relaxed.coarse(), jnp.ones((4, 3))),
        (relaxed.lantern(1, delta=0.1), jnp.zeros((3, 1), jnp.int32)),
    ):
        with pytest.raises(ValueError, match="tell of 3 tokens, but the law has 4"):
            rule.apply(p, p[None], one, params)
    with pytest.raises(ValueError, match="'codes'"), jax.enable_x64(False):
        decoder = methods.lantern(MODEL, MODEL, codes, max_new_tokens=12)
        run(
            lambda *_, **__: decoder, MODEL, {"model": TARGET, "drafter": DRAFTER},
            PROMPT, jax.random.key(0),
        )  # fmt: skip
