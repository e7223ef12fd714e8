"""Runs on rows of tasks: prompts that are given, blocks, rows that stay whole."""

import dataclasses
import itertools
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS
from tiny import RUN

from pdecode.data import packing, texts
from pdecode.data.parallelbench import rows as task_rows
from pdecode.data.parallelbench import tasks
from pdecode.evals.parallelbench import answers, suite
from pdecode.models import embedded, transformer
from pdecode.models.bytes import tokenizer
from pdecode.train import evaluate, losses, plain, settings
from pdecode.train.objectives import masked_diffusion

BLOCKS = dataclasses.replace(CANVAS, attention="block_causal", block_len=3)
END = 61
ROW = np.array([[257, END, 98, END, 97, 7]], np.int32)  # the second END is an answer


def config_of(model, **options):
    return dataclasses.replace(
        RUN, objective="masked_diffusion", model=model, options=options
    )


def test_a_prompt_is_never_masked():
    rows = jnp.asarray(np.repeat(ROW, 512, 0))
    for options, is_given in (({"prompt_end": END}, True), ({}, False)):
        noise = masked_diffusion.noise(config_of(CANVAS, **options))
        masked = np.asarray(noise({"tokens": rows}, jax.random.key(0))["masked"])
        assert masked[:, :2].any() != is_given
        assert masked[:, 2:].any(0).all()
    # A row without one has no prompt.
    bare = jnp.where(rows == END, 5, rows)
    noise = masked_diffusion.noise(config_of(CANVAS, prompt_end=END))
    assert np.asarray(noise({"tokens": bare}, jax.random.key(0))["masked"]).all(1).any()


def test_a_prompt_ends_at_the_first_of_several_tokens():
    rows = jnp.array([[9, END, 98, 7, 97], [9, 98, 7, END, 5], [1, 2, 3, 4, 5]])
    found = np.asarray(masked_diffusion.is_answer(rows, (END, 7))).astype(int)
    ends = [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(found, ends)
    # One of them alone, as a number or a tuple, ends other prompts.
    for one in (END, (END,)):
        found = np.asarray(masked_diffusion.is_answer(rows, one)).astype(int)
        ends = [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
        np.testing.assert_array_equal(found, ends)
    # A record holds a list; what is made of it is a static argument again.
    read = masked_diffusion.Options(prompt_end=[END, 7])
    assert read == masked_diffusion.Options(prompt_end=(END, 7)) and hash(read)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_dropped_prompt_is_masks_that_nobody_scores(share):
    rows = jnp.asarray(np.repeat(ROW, 2048, 0))
    config = config_of(CANVAS, prompt_end=(END, 7), prompt_drop=share)
    made = masked_diffusion.noise(config)({"tokens": rows}, jax.random.key(0))
    tokens, masked = np.asarray(made["tokens"]), np.asarray(made["masked"])
    dropped = (tokens[:, :2] == CANVAS.mask_id).all(1)
    assert abs(dropped.mean() - share) < 0.03
    # A prompt is gone or whole; answers are as they were, and may be masked as ever.
    np.testing.assert_array_equal(
        tokens[~dropped, :2], ROW[:, :2].repeat(sum(~dropped), 0)
    )
    np.testing.assert_array_equal(tokens[:, 2:], np.asarray(rows)[:, 2:])
    assert not masked[:, :2].any() and masked[:, 2:].any(0).all()
    # Which answers are masked does not hang on it.
    kept = masked_diffusion.noise(config_of(CANVAS, prompt_end=(END, 7)))
    other = kept({"tokens": rows}, jax.random.key(0))
    np.testing.assert_array_equal(other["masked"], masked)


def test_a_row_without_a_prompt_drops_none():
    rows = jnp.full((64, 6), 5)
    config = config_of(CANVAS, prompt_end=END, prompt_drop=1.0)
    made = masked_diffusion.noise(config)({"tokens": rows}, jax.random.key(0))
    np.testing.assert_array_equal(made["tokens"], rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_end": -1}, "prompt_end=-1 must be token ids, 0 or above"),
        ({"prompt_end": (3, -1)}, r"prompt_end=\(3, -1\) must be token ids"),
        ({"prompt_end": ("=",)}, r"prompt_end=\('=',\) must be token ids"),
        ({"prompt_end": 2**31}, "must be token ids"),
        ({"prompt_drop": 0.1}, "prompt_drop=0.1 drops nothing without prompt_end"),
        ({"prompt_end": 61, "prompt_drop": 1.5}, "prompt_drop=1.5 must be at least 0"),
        ({"prompt_end": (), "prompt_drop": 0.1}, "drops nothing without prompt_end"),
    ],
)
def test_prompts_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config_of(CANVAS, **options)


def test_one_block_is_noisy_and_what_is_before_is_clean():
    rows = jnp.asarray(np.arange(512 * 7, dtype=np.int32).reshape(512, 7) % 250)
    noise = masked_diffusion.noise(config_of(BLOCKS))
    made = noise({"tokens": rows}, jax.random.key(0))
    blocks = np.asarray(made["masked"])
    touched = np.stack([blocks[:, i : i + 3].any(1) for i in (0, 3, 6)], 1)
    assert (touched.sum(1) <= 1).all() and touched.any(0).all()


def exact_bound(model, params, parts):
    """Nats of the bound by its definition: every subset of every part in turn."""
    total = 0.0
    for places in parts:
        for size in range(1, len(places) + 1):
            subsets = list(itertools.combinations(places, size))
            masked = np.array([[i in some for i in range(6)] for some in subsets])
            many = jnp.asarray(np.repeat(ROW, len(subsets), 0))
            nats = losses.masked_loss(model, params, many, jnp.asarray(masked))
            share = 1 / (size * math.comb(len(places), size))
            total += share * float((np.asarray(nats) * masked).sum())
    return total


@pytest.mark.parametrize(
    ("model", "parts"),
    [(CANVAS, [(2, 3, 4, 5)]), (BLOCKS, [(2,), (3, 4, 5)])],
    ids=["canvas", "blocks"],
)
def test_loss_and_figure_are_the_bound_of_the_answer(model, parts):
    """Means of both estimates equal the enumeration; with the prompt they do not."""
    params = transformer.init(model, jax.random.key(0))
    exact, num = exact_bound(model, params, parts), 8192
    rows, key = jnp.asarray(np.repeat(ROW, num, 0)), jax.random.key(0)
    share = (jnp.arange(num) + 0.5) / num
    given = params, rows, jnp.ones(rows.shape, bool), share, key
    found = masked_diffusion._bound_nats(model, (), END, *given) / num
    np.testing.assert_allclose(found, exact, rtol=0.03)
    config = config_of(model, prompt_end=END, weighting="mdlm")
    batch = masked_diffusion.noise(config)({"tokens": rows}, key)
    value, _ = masked_diffusion.loss(config)(params, {}, batch, key, 0)
    np.testing.assert_allclose(value * rows.shape[1], exact, rtol=0.05)
    whole = masked_diffusion._bound_nats(model, (), None, *given) / num
    assert abs(whole / exact - 1) > 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "mdlm", "noise_schedule": "cosine"},
        {"weighting": "mdlm", "noise_schedule": "quadratic", "complement": True},
        {"weighting": "llada", "complement": True},
        {"weighting": "cart"},
        {"weighting": "even", "complement": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_which_weights_are_the_bound(options):
    """A loss of 1 nat a token in place of a network's: what weighs how much.

    The bound of n tokens is n nats then, whatever the schedule and the copies.
    """
    num, config = 4096, config_of(CANVAS, prompt_end=END, **options)
    rows = jnp.asarray(np.repeat(ROW, num, 0))
    made = masked_diffusion.noise(config)({"tokens": rows}, jax.random.key(0))
    copies = 2 if options.get("complement") else 1
    assert made["tokens"].shape[0] == copies * num
    if copies == 2:
        pairs = np.asarray(made["masked"]).reshape(num, 2, -1)
        wanted = np.repeat(np.arange(6)[None] >= 2, num, 0)
        np.testing.assert_array_equal(pairs[:, 0] ^ pairs[:, 1], wanted)
    total = (made["masked"] * made["weight"]).sum() / (copies * num)
    if options["weighting"] in ("llada", "mdlm"):
        np.testing.assert_allclose(total, 4.0, rtol=0.05)
    elif options["weighting"] == "even":
        np.testing.assert_allclose(total, 2.0)  # each of four in one of two copies
    else:
        assert abs(total - 4.0) > 0.5


def test_context_weights_are_sums_of_a_geometric_law():
    """A mask with all of its neighbours visible, in closed form; then one by one."""
    masked = np.zeros((1, 9), bool)
    masked[0, 3] = True
    found = masked_diffusion.context_weights(jnp.asarray(masked), 0.3)
    closed = 1 - 0.7**3 / 2 - 0.7**5 / 2
    np.testing.assert_allclose(found[0, 3], closed, rtol=1e-6)
    masked = np.random.default_rng(0).random((3, 9)) < 0.5
    found = masked_diffusion.context_weights(jnp.asarray(masked), 0.2)
    slow = [
        [
            sum(0.1 * 0.8 ** (abs(i - j) - 1) for j in range(9) if j != i and not m[j])
            for i in range(9)
        ]
        for m in masked
    ]
    np.testing.assert_allclose(found, slow, rtol=1e-5)
    for options, match in (
        ({"weighting": "llada", "noise_schedule": "cosine"}, "needs weighting='mdlm'"),
        ({"noise_schedule": "square"}, "unknown noise_schedule 'square'"),
        ({"kernel": 0}, "kernel=0 must be at least"),
    ):
        with pytest.raises(ValueError, match=match):
            masked_diffusion.Options(**options)


def test_rows_stay_whole():
    tokens = np.arange(12 * 36, dtype=np.uint16)
    made = packing.sampler(tokens, row_len=36, batch_size=4, seed=3, is_whole=True)
    for step in range(7):  # more than two epochs
        batch = made.batch(step)
        assert (batch[:, 0] % 36 == 0).all() and (np.diff(batch) == 1).all()
    cut = packing.sampler(tokens, row_len=36, batch_size=4, seed=3)
    assert (cut.batch(0)[:, 0] % 36 != 0).any()
    text = texts.Text(tokens, "validation", "token", (), 36)
    found = evaluate.rows(text, 36, 35, None, lambda rows: rows % 2 == 0)
    np.testing.assert_array_equal(found.tokens.ravel(), tokens)
    assert found.num_units == found.scored.sum() == len(tokens) / 2


def test_a_config_of_tasks_needs_their_rows():
    own = {"data": "tasks", "row_len": task_rows.ROW_LEN}
    config = dataclasses.replace(RUN, **own)
    assert config.own_rows == task_rows.ROW_LEN and RUN.own_rows is None
    for fields, match in (
        ({"row_len": 32}, "row_len=32: data='tasks' has rows of its own"),
        ({"short_len": 18}, "short_len=18"),
        ({"data_dir": "here"}, "data_dir='here'"),
        ({"data": "poems"}, "unknown data 'poems'"),
        ({"unit": "token"}, "data='tasks' is bytes"),
    ):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(RUN, **{**own, **fields})


@pytest.mark.parametrize("name", embedded.TASKS)
def test_the_configs_of_the_embedded_models_load(name):
    root = pathlib.Path(__file__).parent.parent
    config = settings.load(root / embedded.config_of(name))
    assert config.name == config.model.name == name
    assert config.data == "tasks" and config.options.prompt_end == task_rows.END_ID
    plain.check(config.model)


def test_configs_of_own_answers_load():
    root = pathlib.Path(__file__).parent.parent / "configs"
    for name, objective in (("certainty", "certainty"), ("filter", "block_filter")):
        config = settings.load(root / f"task_{name}.py")
        assert (config.name, config.objective) == (f"task_{name}", objective)
        assert config.data == "rows" and config.own_rows == task_rows.ROW_LEN
        assert config.options.prompt_end == task_rows.END_ID


def test_own_answers_are_rows_of_what_was_right(monkeypatch):
    """Every second answer is spoiled; what is left is prompt, answer and EOS."""
    asked = []

    def decoded(entry, value, source, batch, seed):
        num = 2 * len(set(batch.tasks))
        some = [
            each
            for name in dict.fromkeys(batch.tasks)
            for each in tasks.generate(name, 9, 2, split="train")
        ]
        assert len(some) == num == len(batch.tasks) and entry.knob == "tokens a step"
        tokens = np.zeros((num, 64), np.int32)
        starts, lengths = np.zeros(num, int), np.zeros(num, int)
        for row, each in enumerate(some):
            answer = "?" + each.answer[1:] if row % 2 else each.answer
            prompt = tokenizer.encode(each.prompt)
            own = tokenizer.encode(each.prompt + answer)
            tokens[row, : len(own)] = own
            starts[row], lengths[row] = len(prompt), len(own) - len(prompt)
            if row % 2 == 0:
                asked.append(each)
        made = types.SimpleNamespace(tokens=tokens, start=starts, lengths=lengths)
        return types.SimpleNamespace(generation=made)

    monkeypatch.setattr(suite, "decoded", decoded)
    model = transformer.make_model(CANVAS)
    found, counts = answers.rows(model, {}, 9, 2)
    assert counts == dict.fromkeys(tasks.NAMES, 1)
    wanted = {each.prompt + each.answer for each in asked}
    texts_ = {tokenizer.decode(row[row < 256].tolist()) for row in found}
    assert texts_ == wanted and found.shape == (len(tasks.NAMES), task_rows.ROW_LEN)
    for row in found:
        assert row[0] == 257 and (row[int(np.argmax(row == 258)) :] == 258).all()
