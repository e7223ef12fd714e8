"""Figures against an independent network in float64, and what they are figures of."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from cases.objectives import CANVAS
from tiny import MODEL, RUN, quiet

from pdecode.data import packing
from pdecode.data.texts import Text
from pdecode.models import bytes as text
from pdecode.models import draft_heads, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, evaluate, export, train
from pdecode.train.objectives import autoregressive, blockwise_heads


def network(model, params, row):
    """Logits float64 [L, V] of one row, written from the definition alone."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    length, dim = len(row), model.head_dim

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight

    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turned(x):
        first, second = x[..., : dim // 2], x[..., dim // 2 :]
        parts = [first * cos - second * sin, second * cos + first * sin]
        return np.concatenate(parts, -1)

    x = params["embed"][row]
    for number in range(model.num_layers):
        layer = params[f"layer_{number}"]
        own, mlp = layer["attention"], layer["mlp"]
        y = norm(x, layer["attention_norm"]["weight"])
        q, k, v = (
            (y @ own[name]["kernel"]).reshape(length, -1, dim)
            for name in ("query", "key", "value")
        )
        q, k = turned(q), turned(k)
        heads = []
        for h in range(model.num_heads):
            g = h * model.num_kv_heads // model.num_heads
            scores = q[:, h] @ k[:, g].T / np.sqrt(dim)
            if model.attention == "causal":
                scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(chances / chances.sum(-1, keepdims=True) @ v[:, g])
        x = x + np.concatenate(heads, -1) @ own["out"]["kernel"]
        y = norm(x, layer["mlp_norm"]["weight"])
        gate = y @ mlp["gate"]["kernel"]
        up = y @ mlp["up"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down"]["kernel"]
    return norm(x, params["norm"]["weight"])


def log_chances(model, params, hidden):
    logits = hidden @ np.asarray(params["embed"], np.float64).T
    if model.mask_id is not None:
        logits[:, model.mask_id] = -np.inf
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def random_text(length, unit="byte", vocab=260):
    draw = np.random.default_rng(0)
    if unit == "token":
        return Text(draw.integers(0, vocab, length), "validation", "token")
    words = [bytes(draw.integers(32, 127, 9).tolist()) for _ in range(length // 11 + 1)]
    tokens = packing.stream(words)[:length]
    return Text(tokens, "validation", "byte", (text.BOS_ID,))


@pytest.mark.parametrize("length", [16, 45])
def test_bits_per_byte_are_those_of_an_independent_network(length):
    model, params = MODEL, transformer.init(MODEL, jax.random.key(3))
    found = random_text(length)
    config = dataclasses.replace(RUN, row_len=16)
    figure = autoregressive.figures(config, params, {}, found, row_len=16)
    # Each token is scored in the first row of 16 that has it in its second half.
    nats, tokens = 0.0, found.tokens.astype(int)
    for place in range(1, length):
        start = max(0, (place - 8) // 8 * 8)
        row = tokens[start : start + 16]
        hidden = network(model, params, row)
        law = log_chances(model, params, hidden)[place - start - 1]
        nats -= law[tokens[place]] * (tokens[place] != text.BOS_ID)
    expected = nats / np.log(2) / (tokens[1:] < 256).sum()
    np.testing.assert_allclose(figure["bits_per_byte"], expected, rtol=1e-5)


@pytest.mark.parametrize("length", [12, 40])
def test_heads_are_not_scored_on_padding(length):
    target = transformer.init(MODEL, jax.random.key(3))
    own = draft_heads.init(2, MODEL.width, 8, jax.random.key(1))
    own = jax.tree.map(lambda leaf: leaf + 0.05, own)
    found = random_text(length)
    config = dataclasses.replace(
        RUN, objective="blockwise_heads", frozen={"target": "target"},
        options={"num_heads": 2, "heads_width": 8},
    )  # fmt: skip
    figure = blockwise_heads.figures(
        config, own, {"target": target}, found, row_len=16
    )["bits_per_token_by_head"]
    tokens, wide = found.tokens.astype(int), jax.tree.map(np.float64, own)
    for k in (0, 1):
        nats, count = 0.0, 0
        for start in range(0, length, 15):
            row = tokens[start : start + 16]
            if len(row) < 2:
                continue
            hidden = network(MODEL, target, row)
            inner = hidden @ wide["up"][k]
            change = (inner / (1 + np.exp(-inner))) @ wide["down"][k]
            x = hidden + change
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * wide["norm"][k]
            law = log_chances(MODEL, target, x)
            for t in range(len(row) - 2 - k):
                answer = row[t + 2 + k]
                if answer != text.BOS_ID:
                    nats, count = nats - law[t, answer], count + 1
        np.testing.assert_allclose(figure[k], nats / count / np.log(2), rtol=1e-5)


WIDE = Config(vocab_size=1000, width=16, num_layers=1, num_heads=2, max_positions=64)


def test_a_vocabulary_that_is_no_bytes_is_scored_by_the_token(tmp_path):
    """Id 257 is a token as any other, and the unit is a token."""
    tokens = np.resize([257, 300, 999], 3000)
    config = TrainConfig(
        name="ids", model=WIDE, steps=30, row_len=16, batch_size=8, warmup_steps=2,
        learning_rate=0.03, eval_every=30, checkpoint_every=30,
    )  # fmt: skip
    assert (config.scored_unit, config.given_ids) == ("token", ())
    streams = (tokens, tokens[:100])
    record = train(config, tmp_path, **quiet(streams=streams)).record
    assert set(record["validation"]) == {"bits_per_token"}
    assert record["validation"]["bits_per_token"] < 2.0  # random: 10
    facts = record["text"]["validation"]
    assert (facts["unit"], facts["units"], facts["given_ids"]) == ("token", 99, [])
    with pytest.raises(
        ValueError, match="the validation text has token 1000 at place 3"
    ):
        bad = np.array([1, 2, 3, 1000])
        train(config, tmp_path / "no", **quiet(streams=(tokens, bad)))
    with pytest.raises(ValueError, match="the train text has 100 tokens and takes"):
        train(config, tmp_path / "no", **quiet(streams=(tokens[:100], tokens)))


def test_a_record_says_which_text_in_which_unit(tmp_path):
    config = dataclasses.replace(RUN, steps=2, warmup_steps=1)
    record = train(config, tmp_path, **quiet()).record
    stored = json.loads((tmp_path / "weights.json").read_text())
    for found in (record, stored):
        assert found["text"]["validation"]["unit"] == "byte"
        assert found["text"]["train"]["given_ids"] == [text.BOS_ID]
        assert len(found["validation_hash"]) == 64
    validation = tiny.streams()[1]
    assert stored["validation_hash"] == packing.fingerprint(validation)
    assert stored["holds"] == {"kind": "transformer"}


def test_rows_count_their_own_units():
    found = random_text(45)
    every = evaluate.rows(found, 16, 8)
    assert every.num_units == (found.tokens[1:] < 256).sum()
    some = evaluate.rows(found, 16, 8, max_rows=2)
    assert len(some.tokens) == 2 and 0 < some.num_units < every.num_units
    parts = list(evaluate.parts(some))
    assert len(parts) == 1 and parts[0][0].shape == (evaluate.BATCH, 16)
    assert not parts[0][1][2:].any()


def test_the_figure_of_a_canvas_says_that_it_is_a_bound():
    config = dataclasses.replace(RUN, model=CANVAS, objective="masked_diffusion")
    params = transformer.init(CANVAS, jax.random.key(0))
    figure = export.figures(config, params, {}, random_text(40), row_len=16)
    assert figure["is_upper_bound"] is True and figure["bits_per_byte"] > 0
