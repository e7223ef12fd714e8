"""The embedded models load by name, fit their records, and fail in one line."""

import dataclasses
import itertools
import json
import pathlib
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode.data import packing, snippets
from pdecode.models import bytes as text
from pdecode.models import digits, draft_heads, embedded
from pdecode.train import export, losses, settings

MAX_BYTES = 20_000_000
ROOT = pathlib.Path(__file__).parent.parent

DIGITS = embedded.SETS["digits"]


@pytest.mark.parametrize("name", embedded.NAMES)
def test_models_load_and_fit_their_record(name):
    model, params, tokenizer = embedded.load(name)
    assert tokenizer is (digits if name in DIGITS else text).tokenizer
    leaves = jax.tree.leaves(params)
    _, record = embedded.read(name)
    assert sum(leaf.size for leaf in leaves) == record["num_params"]
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    again, _, _ = embedded.load(name)
    assert again is model  # static arguments compare by identity first
    if name == "heads":
        width = record_width(record)
        assert model.apply(params, jnp.ones((2, width))).shape == (2, 6, width)
    elif name in DIGITS:
        assert model.vocab_size == digits.VOCAB_SIZE
        assert model.mask_id == digits.MASK_ID and model.eos_ids == ()
        assert model.max_positions == digits.RECORD
    else:
        assert model.vocab_size == text.VOCAB_SIZE
        assert model.mask_id == text.MASK_ID and model.eos_ids == (text.EOS_ID,)
        assert model.head(params).weight.shape == (
            text.VOCAB_SIZE,
            record_width(record),
        )


def record_width(record):
    return record["config"]["model"]["width"]


def test_records_say_how_and_how_well():
    for name in embedded.NAMES:
        _, record = embedded.read(name)
        is_task = name in embedded.TASKS
        own = ("accuracy",) if is_task else ("heldout",)
        own = own if is_task or name in DIGITS else (*own, "ngram")
        for field in ("data_hash", "steps", "validation", *own):
            assert record[field]
        start = f"pdecode train --config {embedded.config_of(name)}"
        assert record["command"].startswith(start)
        settings_of = record["config"]
        assert settings_of["seed"] == (1 if name in ("diffusion", "task_masked") else 0)
        assert settings_of["data_dir"] is None
        assert settings_of["model"].get("dtype", "float32") == "float32"
    folder = embedded.FOLDER
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES


def _shared(made, like):
    """`made` without what `like` has not."""
    if not isinstance(like, dict):
        return made
    return {key: _shared(made[key], like[key]) for key in like}


@pytest.mark.parametrize("name", embedded.NAMES)
def test_commands_are_the_runs_that_records_tell_of(name):
    """The last command's config is the record's, but for what activations are in."""
    _, record = embedded.read(name)
    words = shlex.split(record["command"].split(" && ")[-1])
    sets = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    config = settings.load(ROOT / words[words.index("--config") + 1])
    config = settings.override(config, sets)
    model = dataclasses.replace(config.model, dtype="float32")
    made = export.settings(dataclasses.replace(config, model=model))
    # Fields that came later have their defaults.
    assert _shared(made, record["config"]) == record["config"]
    assert record["steps"] == config.steps


def test_target_is_as_good_as_its_record_says():
    """On a piece of the held-out text, within what a piece may differ."""
    _, record = embedded.read("target")
    params = embedded.load("target")[1]
    model = embedded.transformer_config(record)
    tokens = packing.stream(snippets.text())
    rows = tokens[: len(tokens) // 256 * 256].reshape(-1, 256)
    rows = jnp.asarray(rows[:: len(rows) // 15], jnp.int32)
    nats, counted = losses.next_token_loss(model, params, rows)
    bits = float(jnp.sum(jnp.where(counted, nats, 0)) / np.log(2) / counted.sum())
    assert abs(bits - record["heldout"]["bits_per_byte"]) < 0.5


def test_heads_guess_the_text_better_than_its_bytes_frequencies():
    _, record = embedded.read("heads")
    bits = record["heldout"]["bits_per_token_by_head"]
    assert len(bits) == record["config"]["options"]["num_heads"]
    assert bits == sorted(bits)  # farther is harder
    assert bits[-1] < 4.6


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="known: target, drafter, heads, diffusion"):
        embedded.load("verifier")


def test_missing_and_truncated_files_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"'target'.*missing"):
        embedded.load("target", tmp_path)
    for suffix in ("json", "safetensors"):
        shutil.copy(embedded.FOLDER / f"target.{suffix}", tmp_path)
    weights = tmp_path / "target.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged.*install pdecode again") as caught:
        embedded.load("target", tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "target.json").write_text("{")
    with pytest.raises(ValueError, match=r"target.json is damaged"):
        embedded.load("target", tmp_path)
    (tmp_path / "target.json").write_text(json.dumps({"sha256": "0"}))
    with pytest.raises(ValueError, match="do not match"):
        embedded.load("target", tmp_path)


def test_heads_start_as_the_target():
    own = draft_heads.init(3, 8, 4, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (2, 8))
    found = draft_heads.make_heads(3).apply(own, hidden)
    scale = np.sqrt(np.mean(np.square(hidden), axis=-1, keepdims=True))
    for k in range(3):
        np.testing.assert_allclose(found[:, k], hidden / scale, rtol=1e-4)
    with pytest.raises(ValueError, match="num_heads=0"):
        draft_heads.make_heads(0)
