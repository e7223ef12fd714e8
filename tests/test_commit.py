"""Commit, remask and schedule rules against brute force and closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.contracts import Prediction, Row, Sampling
from pdecode.decode import decode, decode_state, with_trace
from pdecode.families.masked import masked_diffusion
from pdecode.models import toy
from pdecode.rules import commit, orders, schedules


def row(open_, num_initial=None, step=0, turn=0):
    open_ = jnp.asarray(open_)
    number = len(open_)
    return Row(
        tokens=jnp.zeros(number, jnp.int32),
        masked=open_,
        generated=jnp.ones(number, bool),
        start=jnp.int32(0),
        end=jnp.int32(number),
        num_initial=jnp.int32(number if num_initial is None else num_initial),
        step=jnp.int32(step),
        block=jnp.int32(0),
        prompt_end=jnp.int32(0),
        block_of=jnp.zeros(number, jnp.int32),
        turn=jnp.int32(turn),
        positions=jnp.arange(number),
        open=open_,
    )


def chosen(rule, row, **leaves):
    prediction = Prediction(**{k: jnp.asarray(v) for k, v in leaves.items()})
    memory = rule.init(len(row.open))
    return np.asarray(rule.apply(None, jax.random.key(0), row, prediction, memory)[0])


CONFIDENCE = np.array([0.6, 0.99, 0.9, 0.97])


@pytest.mark.parametrize("bound, count", [(1.0, 3), (0.05, 1), (0.1, 2), (2.5, 4)])
def test_factor_golden_values(bound, count):
    # n = 2: 3 * 0.03, n = 3: 4 * 0.1, n = 4: 5 * 0.4
    got = chosen(
        commit.factor(bound), row(np.ones(4, bool)), log_prob=np.log(CONFIDENCE)
    )
    assert got.sum() == count
    assert set(np.flatnonzero(got)) == set(np.argsort(-CONFIDENCE)[:count])


def brute_factor(confidence, open_, bound):
    order = sorted(np.flatnonzero(open_), key=lambda i: -confidence[i])
    count = 0
    while count < len(order) and (count + 2) * (1 - confidence[order[count]]) < bound:
        count += 1
    return set(order[: max(count, 1)])


def brute_threshold(confidence, open_, level):
    order = sorted(np.flatnonzero(open_), key=lambda i: -confidence[i])
    return {i for i in order if confidence[i] >= level} | set(order[:1])


def brute_entropy_bound(entropy, open_, gamma):
    order = sorted(np.flatnonzero(open_), key=lambda i: entropy[i])
    taken = []
    for i in order:
        nats = [entropy[j] for j in [*taken, i]]
        if sum(nats) - max(nats) > gamma:
            break
        taken.append(i)
    return set(taken)


@pytest.mark.parametrize("seed", range(20))
def test_rules_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    open_ = rng.random(9) < 0.6
    open_[rng.integers(9)] = True
    confidence = rng.random(9).astype(np.float32)
    entropy = rng.random(9).astype(np.float32)
    leaves = {"log_prob": np.log(confidence), "entropy": entropy}
    here = row(open_)
    level = rng.random()
    for rule, expected in (
        (commit.threshold(level), brute_threshold(confidence, open_, level)),
        (commit.factor(level * 3), brute_factor(confidence, open_, level * 3)),
        (
            commit.entropy_bounded(level, commit.order("entropy")),
            brute_entropy_bound(entropy, open_, level),
        ),
    ):
        assert set(np.flatnonzero(chosen(rule, here, **leaves))) == expected


def test_ties_go_to_the_lowest_position():
    got = chosen(
        commit.one_by_one(commit.order("low_confidence")),
        row([False, True, True, True]),
        log_prob=np.zeros(4),
    )
    assert got.tolist() == [False, True, False, False]


@pytest.mark.parametrize("steps", [1, 3, 7, 16, 40])
def test_quotas_share_out_every_mask(steps):
    for masks in range(1, 33):
        shares = [int(schedules.quota(masks, step, steps)) for step in range(steps)]
        assert sum(shares) == masks
        assert shares == sorted(shares, reverse=True)
        assert max(shares) - min(shares) <= 1


def test_cosine_mask_fractions():
    progress = jnp.array([0.25, 0.5, 0.75])
    got = schedules.mask_fraction("cosine", progress, jnp.int32(16))
    np.testing.assert_allclose(got, [0.9239, 0.7071, 0.3827], atol=1e-4)
    with pytest.raises(ValueError, match="cosine"):
        schedules.mask_fraction("cosin", progress, jnp.int32(16))


@pytest.mark.parametrize("kind", schedules.ALPHAS)
@pytest.mark.parametrize("steps", [1, 5, 64])
def test_remask_probabilities_are_probabilities(kind, steps):
    plan = schedules.ancestral(kind, steps)
    bound = schedules.max_remask(plan)
    for eta in (0.0, 0.02, 0.5, 1.0):
        for sigma in (jnp.minimum(eta, bound), eta * bound):
            fill = plan._replace(remask=sigma).commit
            assert ((fill >= 0) & (fill <= 1)).all()
            assert ((sigma >= 0) & (sigma <= 1)).all()
            np.testing.assert_allclose(fill[-1], 1, atol=1e-6)


def test_orders_are_permutations():
    for height, width, groups in ((2, 3, 6), (4, 4, 5), (1, 9, 1)):
        total = height * width
        rank = orders.of("random", total, width, seed=1)
        rank = orders.cut(rank, orders.group_sizes(total, groups))
        assert sorted(set(rank)) == list(range(groups))
        sizes = np.bincount(rank)
        assert sizes.sum() == height * width and sizes.min() >= 1
    assert orders.raster(2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="num_groups=10"):
        orders.group_sizes(9, 10)


# On exact models.

LENGTH = 9
LAW = toy.chain(5, 3, LENGTH)
MASKED = toy.make_model(3, LENGTH, predicts="masked")


def masks_after_each_step(decoder, rows, steps):
    """int [steps, rows]: how many positions are open after every step."""
    prompt = prompts.from_rows([[0]] * rows, max_new_tokens=LENGTH - 1)
    traced = with_trace(decoder, lambda state, info: state.masked.sum(1), steps)
    state, _ = jax.jit(
        lambda key: decode_state(traced, LAW, prompt, key, max_steps=steps)
    )(jax.random.key(0))
    return np.asarray(state.saved)


@pytest.mark.parametrize(
    "method, sizes",
    [
        (methods.mdlm, {}),
        pytest.param(methods.mdlm, {"schedule": "cosine"}, marks=pytest.mark.thorough),
        (methods.remdm, {"variant": "cap", "eta": 0.2}),
        pytest.param(
            methods.remdm,
            {"variant": "rescale", "eta": 0.5},
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_number_of_masks_is_binomial(method, sizes):
    """For any model: Binomial(L, 1 - alpha) at every time of the grid."""
    steps, rows, number = 6, 4000, LENGTH - 1
    decoder = method(MASKED, max_new_tokens=number, steps=steps, **sizes)
    saved = masks_after_each_step(decoder, rows, steps)
    kind = sizes.get("schedule", "linear")
    for step in range(steps - 1):
        left = 1 - float(schedules.alpha(kind, jnp.float32(1 - (step + 1) / steps)))
        mean, spread = number * left, math.sqrt(number * left * (1 - left))
        assert abs(saved[step].mean() - mean) < 5 * spread / math.sqrt(rows)
        assert abs(saved[step].std() - spread) < 6 * spread / math.sqrt(rows)
    assert saved[-1].max() == 0


def test_remdm_without_remasking_is_mdlm():
    prompt = prompts.from_rows([[0]] * 50, max_new_tokens=LENGTH - 1)
    sizes = {"max_new_tokens": LENGTH - 1, "steps": 7}
    results = [
        decode(decoder, LAW, prompt, jax.random.key(3))
        for decoder in (
            methods.mdlm(MASKED, **sizes),
            methods.remdm(MASKED, eta=0.0, top_p=None, **sizes),
        )
    ]
    np.testing.assert_array_equal(results[0][0].tokens, results[1][0].tokens)


def test_remdm_reopens_and_still_ends():
    for variant in ("cap", "rescale", "conf", "loop"):
        decoder = methods.remdm(
            MASKED, max_new_tokens=LENGTH - 1, steps=24, variant=variant, eta=0.5
        )
        prompt = prompts.from_rows([[0]] * 20, max_new_tokens=LENGTH - 1)
        out, stats = decode(decoder, LAW, prompt, jax.random.key(0))
        assert stats.num_revoked.sum() > 0, variant
        assert (out.lengths == LENGTH - 1).all()
        assert (stats.num_committed == LENGTH - 1).all()


def test_maskgit_leaves_the_scheduled_number():
    steps, number = 4, LENGTH - 1
    decoder = methods.maskgit(MASKED, max_new_tokens=number, steps=steps)
    saved = masks_after_each_step(decoder, 6, steps)
    expected = [
        math.floor(number * math.cos(math.pi / 2 * r / steps)) for r in (1, 2, 3)
    ]
    for row_ in saved.T:
        assert row_.tolist() == [*expected, 0]


def test_entropy_bound_bounds_the_dependence():
    """Total correlation of each committed set, by enumeration, is at most gamma."""
    length, vocab, gamma = 5, 2, 0.3
    law = toy.joint(11, vocab, length)
    model = toy.make_model(vocab, length, predicts="masked")
    decoder = methods.eb_sampler(
        model, max_new_tokens=length - 1, gamma=gamma, temperature=1.0
    )
    prompt = prompts.from_rows([[0]] * 30, max_new_tokens=length - 1)
    steps = length
    traced = with_trace(decoder, lambda s, i: (s.tokens, s.masked), steps)
    state, stats = decode_state(traced, law, prompt, jax.random.key(0), max_steps=steps)
    tokens, open_ = map(np.asarray, state.saved)
    strings, probs = np.asarray(law.strings), np.exp(np.asarray(law.log_probs))
    assert stats.num_calls.max() < length - 1  # some set had more than one position
    checked = 0
    for b in range(30):
        before = np.array([False, *[True] * (length - 1)])
        known = np.array([0] * length)
        for step in range(steps):
            taken = before & ~open_[step, b]
            if taken.sum() > 1:
                checked += 1
                fits = (strings == known)[:, ~before].all(1)
                assert (
                    total_correlation(strings[fits], probs[fits], taken) <= gamma + 1e-5
                )
            before, known = open_[step, b], tokens[step, b]
    assert checked > 5


def total_correlation(strings, probs, taken):
    probs = probs / probs.sum()
    columns = np.flatnonzero(taken)

    def entropy_of(columns):
        found = {}
        for string, prob in zip(strings[:, columns], probs):
            found[tuple(string)] = found.get(tuple(string), 0) + prob
        return -sum(p * math.log(p) for p in found.values() if p > 0)

    return sum(entropy_of([c]) for c in columns) - entropy_of(columns)


def test_a_confident_product_has_the_mode_of_the_joint():
    """Fast-dLLM's theorem: marginals over 1 - 1/(n+1) make parallel greedy exact."""
    rng = np.random.default_rng(0)
    tested = 0
    strings = np.array(list(itertools.product(range(2), repeat=3)))
    for _ in range(400):
        probs = rng.dirichlet(np.ones(8) * 0.15)
        ones = (probs[:, None] * strings).sum(0)
        if (np.maximum(ones, 1 - ones) > 1 - 1 / 4).all():
            tested += 1
            assert (strings[probs.argmax()] == (ones > 0.5)).all()
    assert tested > 50


def test_by_rank_follows_the_order():
    rank = orders.of("random", LENGTH - 1, None, seed=3)
    rank = orders.cut(rank, orders.group_sizes(LENGTH - 1, 3))
    decoder = masked_diffusion(
        MASKED, commit.by_rank(rank), max_new_tokens=LENGTH - 1, sampling=Sampling()
    )
    saved = masks_after_each_step(decoder, 2, 3)
    left = [(rank > group).sum() for group in range(3)]
    np.testing.assert_array_equal(saved, np.array(left)[:, None] * np.ones((1, 2), int))
