"""Runs on rows of tasks: prompts that are given, blocks, rows that stay whole."""

import dataclasses
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS
from tiny import RUN

from pdecode.data import packing, texts
from pdecode.data.parallelbench import rows as task_rows
from pdecode.models import embedded, transformer
from pdecode.train import evaluate, losses, settings
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
