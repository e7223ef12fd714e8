"""The axial transformer: a row at a time, one pixel a call, and still exact."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.decode import decode_state, finish
from pdecode.models import axial
from pdecode.models.config import Config

HEIGHT, SIDE, VOCAB = 4, 3, 8
NUMBER = HEIGHT * SIDE
CONFIG = Config(
    vocab_size=VOCAB, width=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    mlp_width=24,
)  # fmt: skip
PARAMS = axial.init(CONFIG, HEIGHT, SIDE, 2, jax.random.key(0))
MODEL = axial.make_model(CONFIG, HEIGHT, SIDE, 2)
# Classes behind other text: rows are at different places of the canvas.
ROWS = prompts.from_rows([[0], [1, 2], [3, 1, 0, 2]], max_new_tokens=NUMBER)
CLASSES = jnp.array([0, 2, 2])


def decoded(temperature=1.0):
    decoder = methods.autoregressive(
        MODEL, max_new_tokens=NUMBER, temperature=temperature
    )
    program = jax.jit(functools.partial(decode_state, decoder))
    state, stats = program(PARAMS, ROWS, jax.random.key(3))
    return jax.tree.map(np.asarray, (finish(decoder, state), stats, state.cache))


@jax.jit
def told(tokens):
    """log-probabilities [B, H, W, V] in one pass over whole images."""
    hidden = axial.forward(CONFIG, PARAMS, CLASSES, tokens)
    head = MODEL.head(PARAMS)
    return jax.nn.log_softmax(head.scale * hidden @ head.weight.T)


def image(out):
    return np.stack(
        [row[at : at + NUMBER] for row, at in zip(out.tokens, out.start)]
    ).reshape(-1, HEIGHT, SIDE)


def gap(out):
    """Of the decode's log-probabilities from those of the whole images."""
    tokens = image(out)
    laws = np.take_along_axis(np.asarray(told(tokens)), tokens[..., None], -1)
    found = [row[at : at + NUMBER] for row, at in zip(out.log_probs, out.start)]
    return np.abs(np.stack(found) - laws.reshape(-1, NUMBER)).max()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pixel_by_pixel_is_the_pass_over_whole_images(temperature):
    out, stats, cache = decoded(temperature)
    assert gap(out) < 1e-4
    if temperature == 0:
        tokens = image(out)
        np.testing.assert_array_equal(np.asarray(told(tokens)).argmax(-1), tokens)
    # One lane a pixel, and a pass over the row above where a row begins.
    assert stats.num_calls.tolist() == [NUMBER] * 3
    assert cache["outer"].tolist() == [HEIGHT - 1] * 3


def test_a_pixel_depends_on_all_before_it_and_on_no_other():
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, VOCAB, (3, HEIGHT, SIDE)).astype(np.int32)
    laws = np.asarray(told(tokens)).reshape(3, NUMBER, VOCAB)
    for place in range(NUMBER):
        other = tokens.reshape(3, NUMBER).copy()
        other[:, place] = (other[:, place] + 1) % VOCAB
        moved = np.asarray(told(other.reshape(tokens.shape))).reshape(laws.shape)
        change = np.abs(moved - laws).max((0, 2))
        assert (change[: place + 1] == 0).all()
        assert (change[place + 1 :] > 1e-6).all()


def test_a_context_that_is_not_made_anew_is_caught(monkeypatch):
    """Negative control: rows that see nothing above."""
    monkeypatch.setattr(
        axial.caches, "when", lambda pred, call, otherwise, cache: otherwise(cache)
    )
    axial.make_model.cache_clear()
    model = axial.make_model(CONFIG, HEIGHT, SIDE, 2)
    decoder = methods.autoregressive(model, max_new_tokens=NUMBER, temperature=1.0)
    program = jax.jit(functools.partial(decode_state, decoder))
    state, _ = program(PARAMS, ROWS, jax.random.key(3))
    out = jax.tree.map(np.asarray, finish(decoder, state))
    assert gap(out) > 1e-2
    axial.make_model.cache_clear()


def test_what_an_axial_model_does_not_serve():
    with pytest.raises(ValueError, match="one pixel a call"):
        decoder = methods.jacobi(MODEL, max_new_tokens=NUMBER)
        jax.eval_shape(
            functools.partial(decode_state, decoder), PARAMS, ROWS, jax.random.key(0)
        )
    with pytest.raises(ValueError, match="plain causal"):
        axial.make_model(dataclasses.replace(CONFIG, taps=("embed",)), HEIGHT, SIDE, 2)
