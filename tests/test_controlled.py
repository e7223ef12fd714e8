"""Control by a second image: read by the place that is predicted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.decode import decode
from pdecode.models import controlled, transformer
from pdecode.models.config import Config

PLACES, VOCAB = 9, 8
CONFIG = Config(
    vocab_size=VOCAB, width=16, num_layers=4, num_heads=2, head_dim=8, mlp_width=24,
    max_positions=32,
)  # fmt: skip
PARAMS = controlled.init(CONFIG, VOCAB, jax.random.key(0))
MODEL = controlled.controlled(CONFIG, PLACES)
_WANTED = np.random.default_rng(0).integers(0, VOCAB, (3, PLACES))
WANTED = jnp.asarray(_WANTED)
ROWS = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new_tokens=PLACES)
ROWS = ROWS._replace(context=4.0 * jax.nn.one_hot(WANTED, VOCAB))
GRID = dict(max_new_tokens=PLACES, row_length=3)


def decoded(decoder, params, rows=ROWS):
    program = jax.jit(functools.partial(decode, decoder))
    return jax.tree.map(np.asarray, program(params, rows, jax.random.key(1))[0])


def images(out):
    return [
        row[first : first + PLACES].tolist()
        for row, first in zip(out.tokens, out.start)
    ]


def copying():
    """Parameters that say the control and nothing else."""
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    eye = jnp.eye(VOCAB, CONFIG.width)
    first = {"up": {"kernel": eye}, "down": {"kernel": jnp.eye(CONFIG.width)}}
    params["control"]["layer_0"] = first
    head = "embed" if CONFIG.tied else "head"
    return {**params, head: 8 * eye, "norm": PARAMS["norm"]}


DECODERS = {
    "autoregressive": functools.partial(
        methods.autoregressive, max_new_tokens=PLACES, temperature=1.0
    ),
    "jacobi": functools.partial(
        methods.jacobi, max_new_tokens=PLACES, window=4, temperature=1.0
    ),
    "zipar": functools.partial(methods.zipar, window=1, **GRID),
    "diagonal_decoding": functools.partial(methods.diagonal_decoding, window=1, **GRID),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_that_copies_its_control_does_so_in_any_order(name):
    """A window of guesses, stand-ins and late rows read what they predict."""
    assert images(decoded(DECODERS[name](MODEL), copying())) == WANTED.tolist()


def test_control_of_the_lanes_own_place_is_caught(monkeypatch):
    """Negative control: every pixel is that of the place before."""
    at = controlled._at
    monkeypatch.setattr(
        controlled, "_at", lambda config, positions, cache: at(
            config, positions - 1, cache
        ),
    )  # fmt: skip
    controlled.controlled.cache_clear()
    model = controlled.controlled(CONFIG, PLACES)
    found = images(decoded(DECODERS["autoregressive"](model), copying()))
    assert [row[1:] for row in found] == [row[:-1] for row in WANTED.tolist()]
    controlled.controlled.cache_clear()


def test_it_stays_lossless_and_without_strength_is_the_model():
    plain = decoded(DECODERS["autoregressive"](MODEL), PARAMS)
    window = decoded(DECODERS["jacobi"](MODEL), PARAMS)
    assert images(plain) == images(window)
    np.testing.assert_allclose(plain.log_probs, window.log_probs, atol=1e-4)
    off = controlled.controlled(CONFIG, PLACES, 0.0)
    none = decoded(DECODERS["autoregressive"](off), PARAMS)
    base = transformer.make_model(CONFIG)
    own = decoded(DECODERS["autoregressive"](base), PARAMS, ROWS._replace(context=None))
    jax.tree.map(np.testing.assert_array_equal, none, own)
    assert images(plain) != images(own)


def test_a_control_of_other_places_is_refused():
    with pytest.raises(ValueError, match=r"9 places, but the prompt's context is None"):
        decoded(DECODERS["autoregressive"](MODEL), PARAMS, ROWS._replace(context=None))
    with pytest.raises(ValueError, match="taps="):
        controlled.controlled(dataclasses.replace(CONFIG, taps=("embed",)), PLACES)
    assert controlled.depths(CONFIG) == (0, 1, 2)
