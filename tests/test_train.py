"""Objectives against their definitions, exact resume, configs, and the baseline."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS
from tiny import MODEL, RUN, streams

from pdecode.data import packing
from pdecode.models import bytes as text
from pdecode.models import draft_heads, transformer
from pdecode.train import (
    export,
    losses,
    ngram,
    objectives,
    optimizers,
    passes,
    plain,
    settings,
    train,
)
from pdecode.train.objectives import blockwise_heads, masked_diffusion

ROOT = pathlib.Path(__file__).parent.parent


def rows(batch=3, length=12, seed=0):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.integers(0, 255, (batch, length)), jnp.int32)


@pytest.mark.parametrize(
    ("model", "qk_norm"),
    [
        pytest.param(MODEL, True, marks=pytest.mark.thorough),
        (CANVAS, False),
        (dataclasses.replace(CANVAS, attention="block_causal", block_len=5), False),
    ],
)
def test_plain_pass_is_the_transformers(model, qk_norm):
    model = dataclasses.replace(model, qk_norm=qk_norm)
    params = transformer.init(model, jax.random.key(0))
    tokens = rows()

    def total(run):
        return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(run(p))))(params)

    value, grads = total(lambda p: passes.hidden(passes.Pass(model), p, tokens))
    mine, my_grads = total(lambda p: plain.forward(model, p, tokens))
    np.testing.assert_allclose(mine, value, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        my_grads,
        grads,
    )


def test_plain_pass_refuses_what_it_does_not_do():
    with pytest.raises(ValueError, match="qkv_bias=False"):
        plain.check(dataclasses.replace(MODEL, qkv_bias=True))


def test_bos_is_given_not_predicted():
    params = transformer.init(MODEL, jax.random.key(0))
    tokens = rows().at[:, 5].set(text.BOS_ID)
    _, counted = losses.next_token_loss(MODEL, params, tokens)
    np.testing.assert_array_equal(counted[0], np.arange(11) != 4)


@pytest.mark.parametrize(
    "weighting", [("llada",), ("mdlm",), ("mdlm", "quadratic"), ("mdlm", "cosine")]
)
def test_diffusion_weights_make_the_loss_an_unbiased_bound(weighting):
    """E over t, masks of weight * masked CE is the mean over orders: enumerate it.

    With L masks at rate p(t), E[w 1(masked = M)] tends to 1 / (L C(L-1, |M|-1)) as the
    rate covers (0, 1): the average over orders in which M is still open.
    """
    length = 3
    rate, weight = masked_diffusion.mask_rates(200_000, jax.random.key(1), *weighting)
    rate, weight = np.asarray(rate, np.float64), np.asarray(weight, np.float64)
    for size in range(1, length + 1):
        chance = rate**size * (1 - rate) ** (length - size)
        expected = 1 / (size * math.comb(length, size))
        np.testing.assert_allclose(np.mean(weight * chance), expected, rtol=0.02)


def test_diffusion_figure_is_the_bound_on_average():
    """The estimator's mean equals -sum over subsets of the definition."""
    params = transformer.init(CANVAS, jax.random.key(0))
    tokens = rows(1, 4)
    exact = 0.0
    subsets = [m for m in itertools.product([False, True], repeat=4) if any(m)]
    nats = losses.masked_loss(
        CANVAS, params, jnp.repeat(tokens, len(subsets), 0), jnp.asarray(subsets)
    )
    for mask, row in zip(subsets, np.asarray(nats)):
        size = sum(mask)
        exact += row[np.asarray(mask)].sum() / (size * math.comb(4, size))
    many = jnp.repeat(tokens, 4096, 0)
    share = (jnp.arange(4096) + 0.5) / 4096
    scored = jnp.ones(many.shape, bool)
    total = masked_diffusion._bound_nats(
        CANVAS, (), None, params, many, scored, share, jax.random.key(0)
    )
    np.testing.assert_allclose(total / 4096, exact, rtol=0.02)


def test_mask_id_is_never_predicted():
    params = transformer.init(CANVAS, jax.random.key(0))
    logits = losses.logits_of(CANVAS, params, jnp.ones((1, 2, 16)))
    assert (jax.nn.softmax(logits)[..., text.MASK_ID] == 0).all()


def test_head_k_predicts_k_tokens_beyond_the_targets():
    """With zeroed heads every head is the target, so its loss is the target's later."""
    params = transformer.init(MODEL, jax.random.key(0))
    tokens = rows()
    own = draft_heads.init(2, MODEL.width, 8, jax.random.key(1))
    options = blockwise_heads.Options(num_heads=2, heads_width=8)
    every, _ = blockwise_heads.guessed(MODEL, options, own, params, tokens)
    wanted, counted, _ = losses.ahead(tokens, 2, ())
    loss = losses.of_tokens(every, wanted)
    hidden = passes.hidden(passes.Pass(MODEL), params, tokens)
    # The last norm is applied once more; with unit weights only its epsilon shows.
    logp = jax.nn.log_softmax(losses.logits_of(MODEL, params, hidden))
    for k in (1, 2):
        np.testing.assert_array_equal(counted[0, :, k - 1], np.arange(11) + 1 + k < 12)
        for t in range(12 - 1 - k):
            expected = -logp[0, t, tokens[0, t + 1 + k]]
            np.testing.assert_allclose(loss[0, t, k - 1], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("objective", "optimizer", "model"),
    [
        ("autoregressive", "adamw", MODEL),
        pytest.param("masked_diffusion", "muon", CANVAS, marks=pytest.mark.thorough),
    ],
)
def test_training_lowers_the_loss(tmp_path, objective, optimizer, model):
    config = dataclasses.replace(
        RUN,
        model=model,
        objective=objective,
        optimizer=optimizer,
        learning_rate=1e-2,
        steps=40,
        eval_every=20,
        short_len=16,
        long_steps=20,
        checkpoint_every=40,
    )
    result = train(config, tmp_path, streams=streams(), log=lambda line: None)
    assert result.record["validation"]["bits_per_byte"] < 5.5
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 40]


def test_heads_train_on_a_frozen_target(tmp_path):
    quiet = {"streams": streams(), "log": lambda line: None}
    params = transformer.init(MODEL, jax.random.key(0))
    record = export.describe(RUN, params)
    export.write(tmp_path, "weights", params, record, dtype=np.float32)
    config = dataclasses.replace(
        RUN,
        objective="blockwise_heads",
        frozen={"target": str(tmp_path)},
        options={"num_heads": 2, "heads_width": 8},
    )
    result = train(config, tmp_path / "heads", **quiet)
    assert set(result.params) == {"up", "down", "norm"}
    assert len(result.record["validation"]["bits_per_token_by_head"]) == 2
    with pytest.raises(ValueError, match=r"needs frozen\.target"):
        dataclasses.replace(config, frozen={})


# Trains with a pause after every checkpoint, so that a kill has something to hit.
CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import tiny as t
from pdecode.train import train, trainer
save = trainer.packing.Sampler.batch
def slow(self, step):
    time.sleep({pause})
    return save(self, step)
trainer.packing.Sampler.batch = slow
train(t.RUN, {folder!r}, streams=t.streams())
"""


@pytest.mark.thorough
def test_killed_and_resumed_run_ends_with_the_same_bits(tmp_path):
    folder = tmp_path / "killed"

    def child(pause):
        code = CHILD.format(tests=str(ROOT / "tests"), folder=str(folder), pause=pause)
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True
        )

    process = child(1.0)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "2").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (folder / "weights.safetensors").exists()
    resumed = child(0.0)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and "resumed at step 2" in output
    whole = train(RUN, tmp_path / "whole", streams=streams(), log=lambda line: None)
    assert whole.record["num_params"] > 0
    left, right = (
        (path / "weights.safetensors").read_bytes()
        for path in (folder, tmp_path / "whole")
    )
    assert left == right


def test_longer_run_continues_a_constant_rate_and_nothing_else(tmp_path):
    """A folder holds one run; only the end of a constant rate may move."""
    quiet = {"streams": streams(), "log": lambda line: None}
    config = dataclasses.replace(RUN, schedule="stable", decay_steps=2)
    short, folder = dataclasses.replace(config, steps=4), tmp_path / "a"
    train(short, folder, **quiet)
    with pytest.raises(ValueError, match="learning_rate"):
        train(dataclasses.replace(short, learning_rate=1.0), folder, **quiet)
    # Step 4 of 4 has decayed; a longer run would not have at that step.
    with pytest.raises(ValueError, match="steps: 6 here, 4 there"):
        train(config, folder, **quiet)
    # At step 2 both plans agree.
    (folder / "checkpoints" / "4").rename(tmp_path / "gone")
    longer = train(config, folder, **quiet)
    whole = train(config, tmp_path / "b", **quiet)
    jax.tree.map(np.testing.assert_array_equal, longer.params, whole.params)


def expected_rate(config, step):
    """The definition, on Python numbers."""
    count, peak = step + 1, config.learning_rate
    if count <= config.warmup_steps:
        return peak * count / config.warmup_steps
    last = peak * config.final_fraction
    if config.schedule == "stable":
        fallen = count - (config.steps - config.decay_steps)
        return (
            peak
            if fallen <= 0
            else peak + (last - peak) * fallen / (config.decay_steps)
        )
    share = (count - config.warmup_steps) / (config.steps - config.warmup_steps)
    return last + (peak - last) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize(
    ("schedule", "warmup", "decay"),
    [("stable", 3, 5), ("stable", 0, 0), ("stable", 4, 6), ("cosine", 3, 0)],
)
def test_schedules(schedule, warmup, decay, final):
    config = dataclasses.replace(
        RUN, schedule=schedule, steps=10, warmup_steps=warmup, decay_steps=decay,
        final_fraction=final,
    )  # fmt: skip
    rate = jax.vmap(optimizers.learning_rate(config))(jnp.arange(10))
    expected = [expected_rate(config, step) for step in range(10)]
    np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=1e-9)
    assert rate[0] > 0 and rate.max() == np.float32(RUN.learning_rate)
    if schedule == "cosine" or decay:
        np.testing.assert_allclose(rate[-1], final * RUN.learning_rate, atol=1e-9)


def test_overrides():
    config = settings.override(RUN, ["steps=9", "model.width=32", "data_dir=here"])
    assert (config.steps, config.model.width, config.data_dir) == (9, 32, "here")
    assert RUN.steps == 6
    # Fields are checked against each other after all of them are set.
    config = settings.override(
        config, ["decay_steps=50", "steps=90", "schedule=stable"]
    )
    assert (config.decay_steps, config.steps) == (50, 90)
    for setting, match in [
        ("stepz=1", "known: .*steps"),
        ("steps", "field=value"),
        ("steps=lots", "int"),
        ("steps.more=1", "int"),
        ("model.wide=1", "known: .*width"),
        ("optimizer=sgd", "adamw"),
        ("row_len=128", "max_positions"),
    ]:
        with pytest.raises(ValueError, match=match):
            settings.override(RUN, [setting])


@pytest.mark.parametrize(
    "name", ["target", "drafter", "heads", "diffusion", "consistency"]
)
def test_configs_load(name):
    config = settings.load(ROOT / "configs" / f"byte_{name}.py")
    assert config.name == f"byte_{name}"
    assert config.objective in objectives.NAMES
    # On a CPU, as they say.
    lean = ["forward=plain", "matmul_dtype=bfloat16", "model.dtype=float32"]
    assert settings.override(config, lean).model.width == config.model.width


def test_every_shipped_config_loads():
    shipped = sorted((ROOT / "configs").glob("*.py"))
    assert len(shipped) > 40
    for path in shipped:
        assert settings.load(path).name


def test_rows_of_two_parts_may_be_twice_as_long():
    judge = settings.load(ROOT / "configs" / "task_judge.py")
    limit = judge.model.max_positions
    assert limit < judge.row_len <= 2 * limit
    settings.override(judge, [f"row_len={2 * limit}"])
    with pytest.raises(ValueError, match=f"max_positions={limit}, in each of its 2"):
        settings.override(judge, [f"row_len={2 * limit + 2}"])


def test_bad_config_files(tmp_path):
    with pytest.raises(ValueError, match="no config file"):
        settings.load(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="get_config"):
        settings.load(tmp_path / "empty.py")


def brute_force_kneser_ney(stream, order, discounts, history, token):
    """The textbook recursion on Python lists."""
    stream = list(stream)
    if order == 0:
        return 1 / 257
    grams = [tuple(stream[i : i + order]) for i in range(len(stream) - order + 1)]
    if order < len(discounts):
        wider = order + 1
        above = {tuple(stream[i : i + wider]) for i in range(len(stream) - order)}
        grams = [gram[1:] for gram in above]
    grams = [gram for gram in grams if gram[-1] != text.BOS_ID]
    context = tuple(history[-(order - 1) :]) if order > 1 else ()
    after = [gram[-1] for gram in grams if gram[:-1] == context]
    lower = brute_force_kneser_ney(stream, order - 1, discounts, history, token)
    if not after:
        return lower
    discount = discounts[order - 1]
    count = after.count(token)
    return (max(count - discount, 0) + discount * len(set(after)) * lower) / len(after)


def test_ngram_matches_the_textbook_and_sums_to_one():
    stream = packing.stream([b"abracadabra", b"abba"])
    discounts = [0.4, 0.6, 0.8]
    orders = ngram.fit(stream, 3)
    scored = packing.stream([b"abrzab"])
    expected = 0.0
    tokens = scored.tolist()
    for i in range(1, len(tokens)):
        history = [tokens[0], tokens[0], *tokens[:i]]
        prob = brute_force_kneser_ney(stream, 3, discounts, history, tokens[i])
        expected -= math.log2(prob)
    bits, _ = ngram.bits_per_byte(orders, scored, discounts)
    np.testing.assert_allclose(bits, expected / 6, rtol=1e-9)
    total = sum(
        brute_force_kneser_ney(stream, 3, discounts, [97, 98], token)
        for token in [*range(256), text.EOS_ID]
    )
    np.testing.assert_allclose(total, 1.0)


def test_ngram_is_tuned_on_what_it_scores():
    tokens, validation = streams()
    orders = ngram.fit(tokens)
    best, chosen = ngram.bits_per_byte(orders, validation)
    assert best <= ngram.bits_per_byte(orders, validation, [0.7] * 5)[0]
    assert len(chosen) == 5
    with pytest.raises(ValueError, match="order=9"):
        ngram.fit(tokens, 9)


def test_export_is_whole_or_an_error(tmp_path):
    params = {"a": {"b": np.ones((2, 3), np.float32)}}
    export.write(tmp_path, "x", params, {"name": "x"}, dtype=np.float32)
    from pdecode.models import embedded

    read, record = embedded.read_pair(tmp_path, "x")
    np.testing.assert_array_equal(read["a"]["b"], params["a"]["b"])
    assert record["name"] == "x"
