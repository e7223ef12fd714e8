"""Commit rules, schedules, stops and lenses of the masked family, each by its paper."""

import dataclasses
import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.contracts import (
    STOPPED_BY,
    Background,
    Embedding,
    Filter,
    Guard,
    Head,
    Output,
    Prediction,
    Query,
    Row,
    Sampling,
    Visibility,
)
from pdecode.decode import decode, run
from pdecode.families import masked
from pdecode.methods import variants
from pdecode.models import filters, toy, transformer
from pdecode.rules import (
    beliefs,
    blocks,
    commit,
    histories,
    lenses,
    schedules,
    stops,
)

# A method hides the module that it stands in.
adablock, ascending_steps, certainty_density, dimple, learn2pd = (
    importlib.import_module(f"pdecode.methods.masked.{name}")
    for name in (
        "adablock", "ascending_steps", "certainty_density", "dimple", "learn2pd",
    )
)  # fmt: skip

VOCAB, LENGTH, EOS = 4, 16, 3
LAW = toy.chain(2587, VOCAB, LENGTH)
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,))
PROMPT = prompts.from_rows([[0, 1], [2], [0, 2, 1], [1, 1]], max_new_tokens=8)
KEY = jax.random.key(0)


def on_toy(
    method, *, prompt=PROMPT, model=MASKED, params=LAW, temperature=0.0, **sizes
):
    knobs = {"temperature": temperature, **sizes.pop("knobs", {})}
    made = run(
        method, model, params, prompt, KEY, knobs=knobs, max_new_tokens=8, **sizes
    )
    return jax.tree.map(np.asarray, made)


def assert_same(first, second, same=True):
    """Equal tokens and calls, or (a control) not."""
    is_same = np.array_equal(first[0].tokens, second[0].tokens)
    is_same &= np.array_equal(first[1].num_calls, second[1].num_calls)
    assert is_same == same


def row(open_, *, block=0, block_of=None, positions=None, masked=None, **more):
    """A Row of a canvas that is all generation, unless `more` says otherwise."""
    open_ = jnp.asarray(open_)
    number = len(open_)
    zero = jnp.int32(0)
    place = jnp.arange(number) if positions is None else jnp.asarray(positions)
    base = {
        "tokens": jnp.zeros(number, jnp.int32),
        "masked": open_ if masked is None else jnp.asarray(masked),
        "generated": jnp.ones(number, bool),
        "prompt_end": zero,
        "start": zero,
        "end": jnp.int32(number),
        "block": jnp.int32(block),
        "num_initial": jnp.int32(number),
        "step": zero,
        "turn": zero,
        "positions": place,
        "block_of": jnp.zeros(number, jnp.int32) if block_of is None else block_of,
        "open": open_,
    }
    return Row(**{**base, **more})


def rule_of(method, *models, **sizes):
    """The commit rule of a method, as it reaches the family."""
    found = {}

    def keep(model, rule, **parts):
        found["rule"] = rule
        return rule

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked, "masked_diffusion", keep)
        method(*(models or (MASKED,)), max_new_tokens=8, **sizes)
    return found["rule"]


def chosen(rule, row, params=None, **leaves):
    prediction = Prediction(**{name: jnp.asarray(v) for name, v in leaves.items()})
    memory = rule.init(len(row.open))
    got, _ = jax.jit(rule.apply)(params, KEY, row, prediction, memory)
    return np.flatnonzero(np.asarray(got)).tolist()


def scripted(script):
    """A model (and params) that says what the script says, whatever it is shown.

    script [S, L, V]: logits by the number of known generated tokens, then position.
    """
    script = jnp.asarray(script, jnp.float32)
    return reader_of(*script.shape[1:]), script


@functools.cache
def reader_of(length, vocab):
    def apply(params, query, cache):
        known = (query.tokens != vocab).sum(1) - cache["prompt"]
        said = params[jnp.clip(known, 0, params.shape[0] - 1)[:, None], query.positions]
        pad = jnp.full((*said.shape[:-1], 1), -1e9)
        return Output(jnp.concatenate([said, pad], -1)), cache

    def init_cache(prompt, num_slots):
        return {"prompt": prompt.lengths}

    return toy.make_model(vocab, length, predicts="masked", eos_ids=(EOS,))._replace(
        apply=apply,
        encode=apply,
        init_cache=init_cache,
        head=lambda params: Head(jnp.eye(vocab + 1)),
        embedding=Embedding(lambda params: jnp.eye(vocab + 1), vocab + 1, "float32"),
        name="script",
    )


def logits_of(ids, confidences, vocab=VOCAB, length=LENGTH):
    """float [L, V]: position i says ids[i] with probability confidences[i]."""
    said = np.full((length, vocab), 1.0 / vocab)
    for place, (token, share) in enumerate(zip(ids, confidences)):
        said[place] = (1 - share) / (vocab - 1)
        said[place, token] = share
    return np.log(said)


# Learn2PD.

CONSTANT = Filter(4, lambda params, confidence: jnp.full_like(confidence, params))


def constant_filter(value):
    params = {"model": LAW, "filter": jnp.float32(value)}
    return on_toy(
        methods.learn2pd, model=(MASKED, CONSTANT), params=params, predict_eot=False
    )


def test_a_filter_that_refuses_all_leaves_the_best_one():
    plain = on_toy(methods.llada, block_length=4)
    assert_same(constant_filter(-np.inf), plain)
    assert_same(constant_filter(np.inf), plain, same=False)


def test_a_filter_that_takes_all_fills_a_block_a_call():
    blocks_ = math.ceil(8 / 4)
    out, stats = constant_filter(np.inf)
    ended = out.stopped_by == STOPPED_BY.index("eos")
    assert (stats.num_calls[~ended] == blocks_).all() and (~ended).any()
    assert (stats.num_calls <= blocks_).all()


@pytest.mark.parametrize("grid", ["generation", "absolute"])
def test_a_filter_reads_its_block_in_place(grid):
    """Lane to place in the block, by numpy; a filter of the wrong block is caught."""
    params = filters.init(4, jax.random.key(3))
    confidence = np.linspace(0.05, 0.95, 12).astype(np.float32)
    prompt_end, block = (3, 1) if grid == "generation" else (5, 2)
    origin = prompt_end if grid == "generation" else 0
    place = np.arange(12)
    of = (np.maximum(place - origin, 0)) // 4
    here = (of == block) & (place >= prompt_end)
    rule = learn2pd.filtered(filters.make_filter(4), getattr(blocks, grid)(4), 0.5)
    first = origin + 4 * block
    values = np.ones(4, np.float32)
    inside = place[(place >= first) & (place < min(first + 4, 11))]
    values[inside - first] = confidence[inside]

    def dense(x, layer):
        return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    said = dense(np.maximum(dense(values, params["dense_0"]), 0), params["dense_1"])
    passed = {int(p) for p in inside if said[p - first] > 0}
    best = int(inside[np.argmax(confidence[inside])])
    now = row(
        here & (place < 11), block=block, block_of=jnp.asarray(of), end=jnp.int32(11),
        prompt_end=jnp.int32(prompt_end),
    )  # fmt: skip
    got = chosen(rule, now, params, log_prob=np.log(confidence))
    assert set(got) == passed | {best} and 0 < len(passed) < len(inside) + 1
    other = now._replace(block=jnp.int32(block - 1))
    assert chosen(rule, other, params, log_prob=np.log(confidence)) != got


def test_the_end_of_text_is_where_it_is_said():
    read = stops.end_of_text((EOS,)).apply
    token = jnp.array([0, EOS, 1, EOS, EOS])
    log_prob = jnp.log(jnp.array([0.9, 0.2, 0.9, 0.7, 0.5]))
    said = Prediction(token=token, log_prob=log_prob)
    # Nothing of it committed: behind the likeliest. Then behind the first committed.
    now = row([True, True, False, False, False], masked=[True] * 5)
    assert int(read(now, said)) == 4
    taken = now._replace(masked=jnp.array([True, False, True, True, True]))
    assert int(read(taken, said)) == 2
    # What was filled before this step says nothing, and nobody says it: the row's end.
    old = row([False] * 5, masked=[True, False, True, False, False], end=jnp.int32(5))
    assert int(read(old, said)) == 5


def test_end_of_text_shortens_the_calls_and_not_the_text():
    """The script reads nothing, so what lies in front of EOS must be the same."""
    ids = [0, 0, 1, 2, 0, EOS, 1, 2, 0, 1, 1, 1, 0, 0, 0, 0]
    model, params = scripted(logits_of(ids, [0.9] * 16)[None])
    both = [
        on_toy(
            methods.learn2pd, model=(model, CONSTANT), predict_eot=predict,
            params={"model": params, "filter": jnp.float32(-np.inf)},
            prompt=prompts.from_rows([[0, 0]], max_new_tokens=8),
        )
        for predict in (False, True)
    ]  # fmt: skip
    (plain, spent), (cut, less) = both
    assert plain.lengths == cut.lengths == 3
    np.testing.assert_array_equal(plain.tokens[:, :6], cut.tokens[:, :6])
    assert less.num_query_tokens < spent.num_query_tokens
    assert STOPPED_BY[int(cut.stopped_by[0])] == "eos"


def test_a_row_cut_at_an_eos_that_never_comes_says_so():
    """EOS is likeliest at first; once its neighbour is known another token is."""
    first = logits_of([0, 0, 1, 2, EOS], [0.9, 0.9, 0.95, 0.9, 0.8])
    later = logits_of([0, 0, 1, 2, 1], [0.9, 0.9, 0.95, 0.9, 0.8])
    model, params = scripted([first, later])
    out, _ = on_toy(
        methods.learn2pd, model=(model, CONSTANT),
        params={"model": params, "filter": jnp.float32(-np.inf)},
        prompt=prompts.from_rows([[0, 0]], max_new_tokens=8),
    )  # fmt: skip
    assert out.lengths == 3 and STOPPED_BY[int(out.stopped_by[0])] == "truncated"
    assert EOS not in out.tokens[0, :5]


# CreditDecoding.


def dense_credit(steps, alpha, beta, gamma):
    """Raised logits [T, V] of one position by the published rule, credit for all V."""
    kept, out = np.zeros(steps.shape[1]), []
    for z in steps:
        p = np.exp(z - z.max())
        p /= p.sum()
        kept *= beta
        kept[z.argmax()] += p.max() ** gamma
        out.append(z + alpha * np.log1p(kept))
    return np.array(out)


@functools.cache
def credited(num_kept, vocab=5):
    lens = lenses.credit(num_kept, 0.7, 0.8, 0.2)

    def step(memory, z):
        z, memory = lens.apply(None, None, z, memory)
        return memory, z

    return jax.jit(lambda steps: jax.lax.scan(step, lens.init(), steps)[1])


@pytest.mark.parametrize("seed", range(5))
def test_credits_of_the_whole_vocabulary_are_the_dense_rule(seed):
    steps = np.random.default_rng(seed).normal(size=(12, 5)).astype(np.float32)
    expected = dense_credit(steps.astype(np.float64), 0.7, 0.8, 0.2)
    np.testing.assert_allclose(credited(5)(steps), expected, atol=1e-5)
    # Control: with fewer, what is dropped is missed.
    assert np.abs(credited(1)(steps) - expected).max() > 1e-2


def test_few_credits_are_dense_while_few_tokens_come_first():
    """A large vocabulary, two tokens that take turns, two credits."""
    steps = np.random.default_rng(0).normal(size=(10, 50)).astype(np.float32)
    steps[np.arange(10), [3, 7] * 5] = 6.0
    expected = dense_credit(steps.astype(np.float64), 0.7, 0.8, 0.2)
    np.testing.assert_allclose(credited(2)(steps), expected, atol=1e-5)
    assert np.abs(credited(1)(steps) - expected).max() > 1e-2


def test_the_raise_of_a_stable_token_in_closed_form():
    z = np.log(np.array([0.1, 0.6, 0.1, 0.1, 0.1], np.float32))
    raised = np.asarray(credited(1)(np.tile(z, (8, 1))))[:, 1] - z[1]
    k = np.arange(1, 9)
    expected = 0.7 * np.log1p(0.6**0.2 * (1 - 0.8**k) / (1 - 0.8))
    np.testing.assert_allclose(raised, expected, atol=1e-5)
    assert raised.max() < 0.7 * math.log(6)


def test_no_credit_is_the_plain_threshold():
    """And some is not: fewer calls, never more on a script that reads nothing."""
    share = np.linspace(0.5, 0.95, 16)
    model, params = scripted(logits_of([1] * 16, share)[None])
    prompt = prompts.from_rows([[0], [0, 0]], max_new_tokens=8)

    def calls(alpha):
        return on_toy(
            methods.credit_decoding, model=model, params=params, prompt=prompt,
            knobs={"alpha": alpha, "threshold": 0.8},
        )  # fmt: skip

    plain = masked.masked_diffusion(
        model, commit.threshold(0.8), max_new_tokens=8, sampling=Sampling(),
        blocks=blocks.generation(8),
    )  # fmt: skip
    expected = jax.jit(lambda: decode(plain, params, prompt, KEY))()
    assert_same(calls(0.0), expected)
    assert_same(calls(0.7), expected, same=False)
    assert (calls(0.7)[1].num_calls < np.asarray(expected[1].num_calls)).all()


def test_credit_begins_with_its_block_and_is_small():
    """A position keeps 2 K numbers; those outside the active block keep none."""
    decoder = methods.credit_decoding(
        MASKED, max_new_tokens=8, block_length=4, num_credits=2
    )
    keys = jax.random.split(KEY, 4)

    @jax.jit
    def first_step(params):
        return decoder.step(params, keys, decoder.init(params, keys, PROMPT)[0])[0]

    state = first_step({"model": LAW})
    (found,) = state.memory[3]
    assert found.ids.shape == found.credit.shape == (*state.tokens.shape, 2)
    has_credit = np.asarray(found.credit > 0).any(-1)
    place = np.arange(has_credit.shape[1])
    for b, end in enumerate(np.asarray(PROMPT.lengths)):
        np.testing.assert_array_equal(
            has_credit[b], (place >= end) & (place < end + 4), err_msg=f"{b=}"
        )


# Prophet.


def prophesied(high, middle=None, low=None, **more):
    values = {"high": high, "middle": high if middle is None else middle}
    values["low"] = values["middle"] if low is None else low
    return on_toy(methods.prophet, knobs=values, **more)


def test_thresholds_without_end_leave_the_sampler_alone():
    plain = on_toy(methods.llada, block_length=4)
    assert_same(prophesied(1e30, block_length=4), plain)
    at_once = prophesied(-1e30, block_length=4)
    assert (at_once[1].num_calls == 1).all()
    assert_same(at_once, plain, same=False)
    # No position of an answer: nothing to be sure of.
    assert_same(prophesied(-1e30, block_length=4, answer_start=50), plain)


@pytest.mark.parametrize(
    "gaps, calls", [([9] * 8, 1), ([6] * 8, 4), ([3] * 8, 7), ([0, 8] + [0] * 6, 2)]
)
def test_a_scripted_gap_stops_in_its_stage(gaps, calls):
    """Eight steps: thresholds 7.5 up to step 2, 5.0 up to step 5, then 2.5."""
    script = np.zeros((8, LENGTH, VOCAB))
    script[:, :, 1] = 1.0
    for step, gap in enumerate(gaps):
        script[step, 4:6] = [0, gap, 0, 0]
    model, params = scripted(script)
    out, stats = on_toy(
        methods.prophet, model=model, params=params, answer_start=2, answer_length=2,
        prompt=prompts.from_rows([[0, 0]], max_new_tokens=8),
    )  # fmt: skip
    assert stats.num_calls == calls and out.lengths == 8


# Thresholds.


def test_entropy_thresholds():
    rule = rule_of(methods.dparallel, entropy_threshold=0.5)
    nats = [0.4, 0.5, 0.6, 0.1]
    assert chosen(rule, row([True, True, True, False]), entropy=nats) == [0, 1]
    assert chosen(rule, row([False, False, True, False]), entropy=nats) == [2]
    wide = on_toy(methods.dparallel, block_length=4, knobs={"entropy_threshold": 1e6})
    assert (wide[1].num_calls <= 2).all()


LEAP = np.log([0.95, 0.8, 0.74, 0.8, 0.8, 0.8, 0.8])


def test_local_leap_on_the_hand_made_vector():
    everywhere = row([True] * 7)
    assert chosen(rule_of(methods.local_leap), everywhere, log_prob=LEAP) == [
        0,
        1,
        3,
        4,
    ]
    plain = chosen(commit.threshold(0.9), everywhere, log_prob=LEAP)
    for same in ({"radius": 0}, {"relaxed_threshold": 0.9}):
        rule = rule_of(methods.local_leap, **same)
        assert chosen(rule, everywhere, log_prob=LEAP) == plain == [0]


@pytest.mark.parametrize("seed", range(5))
def test_local_leap_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    confidence, open_ = rng.random(12), rng.random(12) < 0.7
    open_[0] = True
    anchors = [i for i in range(12) if open_[i] and confidence[i] >= 0.8]
    expected = {
        i for i in np.flatnonzero(open_)
        if confidence[i] >= (0.5 if any(abs(i - a) <= 2 for a in anchors) else 0.8)
    } | {int(np.argmax(np.where(open_, confidence, -1)))}  # fmt: skip
    rule = rule_of(methods.local_leap, threshold=0.8, relaxed_threshold=0.5, radius=2)
    got = chosen(rule, row(open_), log_prob=np.log(confidence))
    assert set(got) == expected
    assert set(got) >= set(
        chosen(commit.threshold(0.8), row(open_), log_prob=np.log(confidence))
    )


@pytest.mark.parametrize("seed", range(8))
def test_hierarchical_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(1, 10, 12) / 10  # ties
    open_ = rng.random(12) < 0.7
    open_[3] = True
    runs, best = [], int(np.argmax(np.where(open_, confidence, -1)))
    for i in np.flatnonzero(open_):
        if i and open_[i - 1]:
            runs[-1].append(i)
        else:
            runs.append([i])
    heads = {max(run, key=lambda i: (confidence[i], -i)) for run in runs}
    expected = {i for i in heads if confidence[i] > 0.4} | {best}
    expected |= {i for i in np.flatnonzero(open_) if confidence[i] > 0.85}
    levels = {"threshold": 0.85, "low_threshold": 0.4}
    leaves = {"log_prob": np.log(confidence)}
    slow, fast, soft = (
        set(chosen(rule_of(methods.hierarchical, decoder=name, **levels),
                   row(open_), **leaves))
        for name in ("hierarchical", "hierarchical_fast", "threshold")
    )  # fmt: skip
    assert slow == expected
    assert fast == ({best} if confidence[best] < 0.4 else expected)
    level = min(0.85, confidence[best] - 1e-5)
    assert soft == {i for i in np.flatnonzero(open_) if confidence[i] >= level}


def test_a_fast_hierarchy_holds_back_where_nothing_is_likely():
    """And the plain one does not: the control of the test above."""
    confidence = np.log([0.3, 0.2, 0.35])
    levels = {"threshold": 0.25, "low_threshold": 0.4}
    for name, expected in (("hierarchical", [0, 2]), ("hierarchical_fast", [2])):
        rule = rule_of(methods.hierarchical, decoder=name, **levels)
        assert chosen(rule, row([True] * 3), log_prob=confidence) == expected


def test_runs_of_a_block_halve():
    """The most confident in the middle of each run: 7 positions in 3 calls."""
    middles = [0.5, 0.6, 0.5, 0.7, 0.5, 0.6, 0.5]
    model, params = scripted(logits_of([1] * 8, [0.5, *middles])[None])
    _, stats = on_toy(
        methods.hierarchical, model=model, params=params,
        prompt=prompts.from_rows([[0]], max_new_tokens=7),
    )  # fmt: skip
    assert stats.num_calls == 3


# Dimple.


def slow_share(num_open, total, time, turn):
    now = np.float32(num_open / total)
    for s in time[max(turn + 1, 0) :]:
        if s < now:
            count = num_open if s == time[-1] else int(num_open * (1 - s / now))
            if count >= 1:
                return count
    return num_open


@pytest.mark.parametrize("steps", [3, 8])
def test_the_fallback_schedule_by_brute_force(steps):
    time = np.linspace(1, 1e-3, steps + 1).astype(np.float32)
    shares = jax.jit(jax.vmap(dimple.scheduled, (0, 0, None, 0)))
    cases = [(n, turn) for n in range(1, 9) for turn in range(steps)]
    n, turn = map(jnp.asarray, zip(*cases))
    got = shares(n, n / 8, jnp.asarray(time), turn)
    for share, case in zip(got, cases):
        assert share == slow_share(case[0], 8, time, case[1]), case


def test_confident_decoding_falls_back_only_where_nothing_is_sure():
    rule = rule_of(methods.dimple, steps=8)
    here = row([True] * 8)
    share = np.array([0.96, 0.5, 0.97, 0.9, 0.5, 0.5, 0.5, 0.5])
    assert chosen(rule, here, log_prob=np.log(share)) == [0, 2]
    unsure = np.minimum(share, 0.94)
    unsure[3] = 0.945
    assert chosen(rule, here, log_prob=np.log(unsure)) == [3]
    never = rule_of(methods.dimple, steps=8, alg_p_threshold=2.0)
    assert chosen(never, here, log_prob=np.log(share)) == [2]
    at_once = on_toy(methods.dimple, knobs={"alg_p_threshold": 0.0})
    assert (at_once[1].num_calls == 1).all()


# EOSER and ascending steps.


def test_a_factor_of_one_is_the_base_sampler():
    plain = on_toy(methods.llada, steps=4)
    assert_same(on_toy(methods.eoser, steps=4, knobs={"g_min": 1.0}), plain)


def test_end_of_text_waits_for_words():
    """EOS at 0.6, words at 0.5: the base sampler takes EOS first, EOSER words."""
    ids, share = [0, 1, EOS, 1, EOS, 2, EOS], [0.5, 0.5, 0.6, 0.5, 0.6, 0.5, 0.6]
    token, log_prob = jnp.asarray(ids), np.log(share)
    here = row([True] * 7)
    for g_min, expected in ((1.0, [2, 4, 6]), (0.4, [0, 1, 3])):
        rule = rule_of(methods.eoser, steps=4, g_min=g_min)
        # Eight tokens in four steps: two a step.
        got = chosen(rule, here._replace(num_initial=jnp.int32(12)), token=token,
                     log_prob=log_prob)  # fmt: skip
        assert got == expected
    # At the end the factor is one again.
    late = here._replace(num_initial=jnp.int32(12), turn=jnp.int32(3))
    rule = rule_of(methods.eoser, steps=4)
    assert chosen(rule, late, token=token, log_prob=log_prob) == [2, 4, 6]


def test_ascending_steps_add_up():
    for length in range(2, 601):
        num_steps = length.bit_length() - 1
        for num_blocks in range(1, num_steps + 1):
            sizes = ascending_steps.block_sizes(length, num_blocks)
            assert sum(sizes) == length and min(sizes) >= 1
            assert len(sizes) == num_blocks
    assert ascending_steps.block_sizes(128, 4) == [15, 16, 32, 65]
    with pytest.raises(ValueError, match="num_blocks=8 exceeds the 7 steps"):
        ascending_steps.block_sizes(128, 8)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_ascending_steps_take_log2_calls(num_blocks):
    """1, 2, 4 and what is left; a shorter row of one block has a ladder of its own."""
    model, params = scripted(logits_of([1] * 20, [0.5] * 20, length=20)[None])
    prompt = prompts.from_rows([[0], [0, 0]], max_new_tokens=[17, 8])
    _, stats = run(
        methods.ascending_steps, model, params, prompt, KEY, max_new_tokens=17,
        num_blocks=num_blocks,
    )  # fmt: skip
    expected = [[1, 2, 4, 10], [1, 2, 5]] if num_blocks == 1 else [[1, 2, 4, 10]]
    for bins, counts in zip(np.asarray(stats.committed_per_call), expected):
        want = np.zeros_like(bins)
        want[counts] = 1
        np.testing.assert_array_equal(bins, want)


# Schedules.


def test_the_timestep_shift():
    got = schedules.shifted(jnp.array([0, 0.5, 1]), 1 / 3)
    np.testing.assert_allclose(got, [0, 0.25, 1], atol=1e-6)
    for steps in (1, 3, 8, 16):
        shares = jax.jit(
            jax.vmap(
                lambda n, a, steps=steps: schedules.shares(
                    lambda r: schedules.shifted(r, a), n, steps
                ),
                (0, None),
            )
        )
        number = jnp.arange(1, 65)
        for shift in (1 / 3, 1.0, 3.0):
            table = np.asarray(shares(number, shift))
            np.testing.assert_array_equal(table.sum(1), number)
            assert (table >= 0).all() and (table[:, -1] == 0).all()
            assert (table[steps - 1 :, :-1] >= 1).all()
    # Late with 1/3, even with 1, early with 3.
    late, even, early = (np.asarray(shares(number, s))[63] for s in (1 / 3, 1.0, 3.0))
    assert (np.diff(late[:-1]) >= -1).all() and late[0] < even[0] < early[0]
    assert even[:-1].tolist() == [4] * 16


def test_a_shift_of_one_is_llada():
    plain = on_toy(methods.llada, steps=4, block_length=4)
    even = on_toy(methods.lavida, steps=4, block_length=4, knobs={"shift": 1.0})
    assert_same(even, plain)
    late = on_toy(methods.lavida, steps=4, block_length=8, knobs={"shift": 0.1})
    assert_same(late, on_toy(methods.llada, steps=4, block_length=8), same=False)


def test_sedd_and_md4_are_the_ancestral_step():
    """SEDD's analytic update, and MD4's cosine grid on linear alpha."""
    time = np.linspace(1, 0, 9)[1:-1]
    for kind in schedules.ALPHAS:
        plan = schedules.ancestral(kind, 8)
        alpha = np.asarray(schedules.alpha(kind, jnp.asarray(time)), np.float64)
        sigma = -np.log(alpha)
        step = np.expm1(sigma[:-1] - sigma[1:]) / np.expm1(sigma[:-1])
        np.testing.assert_allclose(plan.commit[1:-1], step, rtol=1e-4)
        # In float64, without the table's rounding.
        ratio = (alpha[1:] - alpha[:-1]) / (1 - alpha[:-1])
        np.testing.assert_allclose(step, ratio, rtol=1e-12)
    grid = np.cos(np.pi / 2 * (1 - np.linspace(1, 0, 9)))
    np.testing.assert_allclose(
        schedules.alpha("linear", jnp.asarray(grid)),
        schedules.alpha("cosine", jnp.linspace(1, 0, 9)),
        atol=1e-6,
    )
    method, settings = variants.resolve("md4")
    assert method is methods.mdlm and settings["schedule"] == "cosine"


def test_first_hitting_is_exact():
    """Its law is that of `test_exact`'s random order; the ancestral grid's is not."""
    for name, expected in (("first_hitting", "exact"), ("md4", "lossy")):
        method, settings = variants.resolve(name)
        assert method(MASKED, max_new_tokens=8, **settings).guarantee == expected


# KLASS.


def slow_klass(steps, open_steps, level, kl_level, need):
    """Chosen lanes of each step by the dense rule, history from nothing."""
    before, count, out = None, np.zeros(steps.shape[1], int), []
    for z, open_ in zip(steps, open_steps):
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        if before is None:
            calm = np.zeros(len(count), bool)
        else:
            calm = (p * np.log(p / before)).sum(-1) < kl_level
        count = np.where(open_, np.where(calm, count + 1, 0), count)
        ready = open_ & (count >= need) & (p.max(-1) >= level)
        best = np.argmax(np.where(open_, p.max(-1), -1))
        out.append(np.flatnonzero(ready).tolist() or [int(best)])
        before = p
    return out


def fast_klass(steps, open_steps, size, **levels):
    rule = rule_of(methods.klass, num_kept=size, **levels)
    memory, out, apply = rule.init(steps.shape[1]), [], jax.jit(rule.apply)
    for z, open_ in zip(steps, open_steps):
        log_probs = jax.nn.log_softmax(jnp.asarray(z))
        top, ids = jax.lax.top_k(log_probs, size)
        said = Prediction(log_prob=top[:, 0], top_ids=ids, top_log_probs=top)
        got, memory = apply(None, KEY, row(open_), said, memory)
        out.append(np.flatnonzero(np.asarray(got)).tolist())
    return out


def test_klass_of_the_whole_vocabulary_is_the_dense_rule():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(6, VOCAB + 1)) * 2
    noise = rng.normal(size=(7, 6, 1)) * rng.choice([0.02, 0.8], (7, 6, 1))
    steps = (base + noise * rng.normal(size=(7, 6, VOCAB + 1))).astype(np.float32)
    open_ = np.ones((7, 6), bool)
    expected = slow_klass(steps.astype(np.float64), open_, 0.5, 0.05, 2)
    levels = {"threshold": 0.5, "kl_threshold": 0.05}
    assert fast_klass(steps, open_, VOCAB + 1, **levels) == expected
    assert max(map(len, expected)) > 1  # something was stable
    # Control: without a history it is the plain threshold, and more is taken.
    assert fast_klass(steps, open_, VOCAB + 1, kl_history_length=1,
                      threshold=0.5, kl_threshold=1e6)[1:] != expected[1:]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_few_kept_tokens_never_overstate_the_divergence(seed):
    rng = np.random.default_rng(seed)
    laws = rng.dirichlet(np.ones(12) * 0.5, size=(2, 40))
    true = (laws[0] * np.log(laws[0] / laws[1])).sum(-1)
    last = np.full(40, -1e-6)
    for size in (1, 4, 12):
        tops = [jax.lax.top_k(jnp.asarray(law, jnp.float32), size) for law in laws]
        (now, ids), (old, old_ids) = tops
        got = np.asarray(jax.jit(histories.divergence)(ids, now, old_ids, old))
        assert (got <= true + 1e-4).all() and (got >= last - 1).all()
    np.testing.assert_allclose(got, true, atol=2e-3)


# Priors.


def test_certainty_is_a_weighted_share_of_known_neighbours():
    open_ = np.array([False, False, True, True, False, True, True])
    for end in (7, 5):
        now = row(open_, end=jnp.int32(end))
        got = np.asarray(jax.jit(lambda row: commit.density(row, 2))(now))
        known = {p: not open_[p] for p in range(end)}
        last = known[end - 1]
        for i in range(end):
            near = range(i - 8, i + 9)
            weight = {j: math.exp(-0.5 * ((i - j) / 2) ** 2) for j in near}
            share = sum(weight[j] * known.get(j, j < 0 or last) for j in near)
            assert abs(got[i] - share / sum(weight.values())) < 1e-6
    # Equal confidence: the position with more known around it goes first.
    rule = rule_of(methods.certainty_density, sigma=1)
    assert chosen(rule, row(open_), log_prob=np.zeros(7)) == [2]
    far = row(~np.eye(7, dtype=bool)[5], start=jnp.int32(0))
    assert chosen(rule, far, log_prob=np.zeros(7)) in ([0], [4], [6])


# AdaBlock.


def test_no_delimiter_is_a_block_of_the_default_length():
    plain = on_toy(methods.fast_dllm, block_length=4, knobs={"threshold": 0.4})
    assert (plain[1].num_calls < 8).any()
    values = {"threshold": 0.4, "delimiter_threshold": 2.0}
    sizes = {"block_length": 4, "delimiter_ids": (0, 1)}
    assert_same(on_toy(methods.adablock, knobs=values, **sizes), plain)
    low = on_toy(
        methods.adablock, knobs={**values, "delimiter_threshold": 0.0}, **sizes
    )
    assert_same(low, plain, same=False)


def test_a_block_ends_at_the_likeliest_delimiter():
    """All but the delimiters are sure, so each call fills what its block opens."""
    rule = adablock.up_to_delimiter(commit.threshold(0.5), (7, 8), 3, 5, 0.3)
    token = jnp.array([1, 7, 1, 8, 1, 7, 1, 1])
    share = jnp.array([0.9, 0.5, 0.9, 0.6, 0.9, 0.95, 0.9, 0.9])
    said = Prediction(token=token, log_prob=jnp.log(share))
    memory, open_, seen = rule.init(8), np.ones(8, bool), []
    apply = jax.jit(rule.apply)
    for _ in range(3):
        got, memory = apply(None, KEY, row(open_), said, memory)
        seen.append(np.flatnonzero(np.asarray(got)).tolist())
        open_ &= ~np.asarray(got)
    # Position 5 is a likelier delimiter, but five ahead of position 0 is too far.
    assert seen == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert not open_.any()


# Dream's blocks and threshold.


def test_dream_decodes_blocks_on_grids_of_their_own():
    """Two blocks are two decodes: the second begins its shares anew."""
    model, params = scripted(logits_of([1] * 16, [0.9] * 16)[None])
    one = prompts.from_rows([[0]], max_new_tokens=8)
    sizes = {"model": model, "params": params, "prompt": one, "alg": "entropy"}
    _, whole = on_toy(methods.dream, steps=4, block_length=4, **sizes)
    # floor(4 * 0.4995) and the rest, twice; in one block the shares are of eight.
    assert whole.committed_per_call[0, :5].tolist() == [0, 2, 0, 2, 0]
    _, single = on_toy(methods.dream, steps=4, **sizes)
    assert single.committed_per_call[0, :5].tolist() != [0, 2, 0, 2, 0]
    with pytest.raises(ValueError, match="leave block_length=4 out"):
        methods.dream(MASKED, max_new_tokens=8, block_length=4)


def test_dream_above_a_threshold_of_the_filtered_law():
    """Top-2 makes 0.6 of [0.5, 0.3, 0.1, 0.1] 0.625, which passes 0.62."""
    script = np.log(np.tile([0.5, 0.3, 0.1, 0.1], (1, LENGTH, 1)))
    script[:, 3] = np.log([0.4, 0.35, 0.15, 0.1])
    model, params = scripted(script)
    decoder = functools.partial(
        on_toy, methods.dream, model=model, params=params, alg="confidence_threshold",
        prompt=prompts.from_rows([[0]], max_new_tokens=8), temperature=1e-3 + 1,
    )  # fmt: skip
    assert decoder(knobs={"top_k": 1, "threshold": 0.9})[1].num_calls == 1
    assert decoder(knobs={"top_k": 4, "threshold": 0.9})[1].num_calls == 8


# The guard.


def test_a_guard_changes_nothing_or_leaves_the_refusal():
    guard = Guard(lambda params, row: row.turn >= params)

    def guarded(turn, prompt=PROMPT):
        params = {"model": LAW, "guard": jnp.int32(turn)}
        return on_toy(
            methods.audited, model=(MASKED, guard), params=params, steps=4,
            refusal_ids=(2, 1, 2), prompt=prompt,
        )  # fmt: skip

    plain = on_toy(methods.llada, steps=4)
    never = guarded(99)
    jax.tree.map(np.testing.assert_array_equal, never, plain)
    for turn in (0, 3):
        out, stats = guarded(turn)
        at = STOPPED_BY.index("vetoed")
        ended = out.stopped_by == at
        assert ended.all() if turn == 0 else ended.any()
        for b in np.flatnonzero(ended):
            start = out.start[b]
            assert out.tokens[b, start : start + out.lengths[b]].tolist() == [2, 1, 2]
            # What was said before the veto stands nowhere.
            assert not out.committed[b, start + 3 :].any()
            assert stats.num_committed[b] == 3 and stats.num_revoked[b] > 0
    with pytest.raises(ValueError, match="none of them an EOS"):
        methods.audited(MASKED, guard, max_new_tokens=8, refusal_ids=(EOS,))


def test_text_pinned_behind_holes_is_counted():
    made = prompts.from_rows(
        [[0, 1, 2, 0], [0, 1], [1, 1, 1]],
        max_new_tokens=4,
        holes=[[False, True, False, False], [False, False], [True, True, True]],
    )
    assert prompts.pinned_behind_holes(made).tolist() == [2, 0, 0]
    assert prompts.pinned_behind_holes(PROMPT).tolist() == [0] * 4


def test_params_of_a_role_that_is_not_there_are_asked_for():
    decoder = methods.learn2pd(MASKED, CONSTANT, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"role 'filter', but there are \['model'\]"):
        decode(decoder, {"model": LAW}, PROMPT, KEY)


# Latent refinement.

TINY = transformer.Config(
    vocab_size=VOCAB + 1, width=8, num_layers=2, num_heads=2, predicts="masked",
    attention="bidirectional", mask_id=VOCAB, eos_ids=(EOS,),
)  # fmt: skip
SMALL = {
    "model": transformer.make_model(TINY),
    "params": transformer.init(TINY, jax.random.key(3)),
}


def test_no_refinement_is_the_plain_entropy_order():
    off = {"r_f": 0.0, "tau_decode": 0.0}
    by = commit.order("entropy")
    plain = masked.masked_diffusion(
        SMALL["model"], commit.one_by_one(by), max_new_tokens=8, sampling=Sampling()
    )
    expected = jax.jit(lambda params: decode(plain, params, PROMPT, KEY))(
        SMALL["params"]
    )
    got = on_toy(methods.latent_refinement, t_refine=0, knobs=off, **SMALL)
    assert_same(got, expected)
    soft = on_toy(methods.latent_refinement, t_refine=0, knobs={**off, "r_f": 1.0},
                  **SMALL)  # fmt: skip
    assert_same(soft, expected, same=False)


def test_a_still_model_leaves_refinement_at_the_second_call():
    """The first divergence is defined there; the third call fills the block."""
    model, params = scripted(logits_of([1] * 16, np.linspace(0.5, 0.9, 16))[None])
    one = prompts.from_rows([[0]], max_new_tokens=8)
    sizes = {"model": model, "params": params, "prompt": one, "num_kept": VOCAB + 1}
    _, stats = on_toy(methods.latent_refinement, block_length=4, **sizes)
    assert stats.num_calls == 6 and stats.num_committed == 8
    never = {"tau_refine": 0.0, "tau_decode": 0.0}
    _, stats = on_toy(methods.latent_refinement, block_length=4, t_refine=3,
                      knobs=never, **sizes)  # fmt: skip
    assert stats.num_calls == 2 * (3 + 4)


def test_a_certain_mask_is_its_token():
    """Weight one on a one-hot law: the model answers as if the token stood there."""
    model, params = SMALL["model"], SMALL["params"]
    soft = beliefs.softened(model, 1.0, 1.0)
    words, open_ = jnp.array([[0, 1, 2, 1]]), jnp.array([[0, VOCAB, VOCAB, 1]])
    place = jnp.arange(4)[None]
    prompt = prompts.from_rows([[0]], max_new_tokens=3)
    table = model.embedding.table(params)
    certain = jnp.full((1, 4, VOCAB + 1), -1e9).at[0, place[0], words[0]].set(0.0)
    added = beliefs.shift(certain, table, VOCAB, 1.0, 1.0)
    np.testing.assert_allclose(
        added, table[words] - table[VOCAB][None, None], atol=1e-6
    )
    # No weight adds nothing; a flat law has none.
    assert not np.any(beliefs.shift(certain, table, VOCAB, 0.0, 1.0))
    np.testing.assert_allclose(
        beliefs.shift(jnp.zeros((1, VOCAB + 1)), table, VOCAB, 1.0, 1.0), 0, atol=1e-5
    )

    def ask(each, tokens, cache):
        query = Query(
            tokens, place, place, Visibility(jnp.zeros_like(place), place * 0 + 4)
        )
        return each.apply(params, query, cache)[0].hidden

    expected = ask(model, words, model.init_cache(prompt, 5))
    cache = soft.init_cache(prompt, 5)
    plain = ask(soft, open_, cache)
    cache["mean"] = cache["mean"].at[:, 0, :4].set(added[0])
    np.testing.assert_allclose(ask(soft, open_, cache), expected, atol=1e-5)
    assert np.abs(plain - expected).max() > 1e-2


def smoothed_by_hand(model, params, prompt, weight):
    """(text, calls) of iteration smoothing in blocks of four, step by step."""
    table = np.asarray(model.embedding.table(params), np.float64)
    head = np.asarray(model.head(params).weight, np.float64)
    place = jnp.arange(11, dtype=jnp.int32)[None]
    visible = Visibility(place * 0, place * 0 + 11)

    @jax.jit
    def hidden(tokens, extra):
        query = Query(tokens, place, place, visible, extra, tokens == VOCAB)
        return model.apply(params, query, model.init_cache(prompt, 11))[0].hidden

    text, calls = np.array([0, 2, 1] + [VOCAB] * 8), 0
    extra = np.zeros((11, table.shape[1]))
    while (text == VOCAB).any():
        found = hidden(jnp.asarray(text[None]), jnp.asarray(extra[None], jnp.float32))
        logits = np.asarray(found[0], np.float64) @ head.T
        law = np.exp(logits - logits.max(1, keepdims=True))
        law /= law.sum(1, keepdims=True)
        extra = min(0.15 + 0.1 * calls, weight) * law @ table
        block = (np.flatnonzero(text == VOCAB)[0] - 3) // 4
        here = [p for p in range(3 + 4 * block, 7 + 4 * block) if text[p] == VOCAB]
        sure = {p: law[p, :VOCAB].max() for p in here}
        level = min(max(1 - 0.2 * calls, 0.4), max(sure.values()) - 1e-5)
        for p in here:
            if sure[p] >= level:
                text[p] = law[p, :VOCAB].argmax()
        calls += 1
    return text.tolist(), calls


def test_masks_carry_the_law_before_and_the_threshold_falls():
    model, params = SMALL["model"]._replace(eos_ids=()), SMALL["params"]
    prompt, kept = prompts.from_rows([[0, 2, 1]], max_new_tokens=8), []
    for weight in (0.3, 0.0):
        knobs = {"threshold": 0.4, "threshold_decay": 0.2, "weight": weight}
        out, stats = run(
            methods.iteration_smoothing, model, params, prompt, KEY, max_new_tokens=8,
            block_length=4, knobs=knobs | {"weight_growth": 0.1},
        )  # fmt: skip
        text, calls = smoothed_by_hand(model, params, prompt, weight)
        assert out.tokens[0, :11].tolist() == text
        assert stats.num_calls.tolist() == [calls]
        kept.append(np.asarray(out.log_probs))
    assert np.abs(kept[0] - kept[1]).max() > 1e-3  # the masks do carry something


def test_a_model_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="and no embeddings: use a transformer"):
        methods.latent_refinement(MASKED, max_new_tokens=8)


# PC-Sampler and set block decoding.


def test_trivial_tokens_wait_and_the_front_goes_first():
    frequency = jnp.array([0.9, 0.1, 1e-12, 0.0, 0.0])
    token, log_prob = jnp.array([0, 1, 2, 1]), np.log([0.9, 0.5, 0.4, 0.6])
    here = row([True] * 4)
    place = np.arange(4)
    for pull, clip in ((0.25, 10.0), (0.0, 10.0), (3.0, 10.0), (0.0, 0.5)):
        score = np.exp(-pull * place) * np.minimum(
            -np.exp(log_prob) * np.log(np.asarray(frequency)[token] + 1e-9), clip
        )
        best = np.argsort(-score, kind="stable")[:2]
        rule = rule_of(
            methods.pc_sampler, MASKED, Background(VOCAB + 1), steps=2,
            lambda_val=pull, alpha=clip,
        )  # fmt: skip
        got = chosen(rule, here, frequency, token=token, log_prob=log_prob)
        assert got == sorted(best.tolist()), (pull, clip)
    # Control: by confidence alone the trivial token is first.
    assert 0 in chosen(commit.quota(commit.order("low_confidence"), 2), here,
                       token=token, log_prob=log_prob)  # fmt: skip
    with pytest.raises(ValueError, match="the background has 3 frequencies"):
        methods.pc_sampler(MASKED, Background(3), max_new_tokens=8)


@pytest.mark.parametrize("attention", ["block_causal", "bidirectional"])
def test_set_block_decoding_is_the_entropy_bound_without_a_cache(attention):
    """Exact where blocks see nothing behind them; elsewhere the cache must show."""
    is_exact = attention == "block_causal"
    config = dataclasses.replace(
        TINY, attention=attention, block_len=4 if is_exact else None
    )
    given = {"model": transformer.make_model(config), "params": SMALL["params"]}
    sizes = {} if is_exact else {"block_length": 4}
    method, settings = variants.resolve("set_block_decoding")
    knobs = {"gamma": 0.5}
    cached, spent = on_toy(method, knobs=knobs, **given, **sizes, **settings)
    plain, calls = on_toy(method, knobs=knobs, **given, **sizes)
    assert np.array_equal(cached.tokens, plain.tokens) == is_exact
    if is_exact:
        np.testing.assert_array_equal(spent.num_calls, calls.num_calls)
        np.testing.assert_allclose(cached.log_probs, plain.log_probs, atol=1e-4)
        assert (spent.num_query_tokens < calls.num_query_tokens).all()


# FreeCache.


def test_a_reach_of_the_canvas_is_no_cache_and_a_short_one_shows():
    sizes = {"steps": 4, "block_length": 4}
    plain, calls = on_toy(methods.llada, **sizes, **SMALL)
    whole = on_toy(methods.free_cache, reach=64, **sizes, **SMALL)
    assert_same(whole, (plain, calls))
    near, spent = on_toy(methods.free_cache, reach=4, **sizes, **SMALL)
    assert (spent.num_calls == calls.num_calls).all()
    assert (spent.num_query_tokens < calls.num_query_tokens).all()
    assert np.abs(near.log_probs - plain.log_probs).max() > 1e-3
    with pytest.raises(ValueError, match="reach=3 is less than block_length=4"):
        methods.free_cache(MASKED, max_new_tokens=8, block_length=4, reach=3)
