"""SJD2: guesses that begin as noise, what they may change, and where they may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_exact
from test_jacobi import excess

from pdecode import methods, prompts
from pdecode.contracts import Embedding, Sampling
from pdecode.decode import run
from pdecode.drafters import denoised, guesses
from pdecode.families import speculative
from pdecode.models import transformer
from pdecode.rules import accept

WIDTH = test_exact.VOCAB + 1
CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=1, num_heads=4, num_kv_heads=2, mlp_width=24
)
MODEL = transformer.make_model(CONFIG)
PARAMS = transformer.init(CONFIG, jax.random.key(0))
PROMPT = prompts.from_rows([[1, 2, 3], [4], [5, 6, 7, 8]], max_new_tokens=[11, 12, 7])


def read(params, query, cache):
    """The exact toy behind one-hot embeddings: a noisy one is the nearest token."""
    if query.extra is not None:
        stands = jax.nn.one_hot(query.tokens, WIDTH) + query.extra
        tokens = jnp.argmax(stands, -1).astype(jnp.int32)
        query = query._replace(tokens=tokens, extra=None)
    return test_exact.CAUSAL.apply(params, query, cache)


TOY = test_exact.CAUSAL._replace(
    apply=read,
    encode=read,
    embedding=Embedding(lambda params: jnp.eye(WIDTH), WIDTH, "float32"),
)


@pytest.mark.parametrize("num_levels", [1, 2, 20])
def test_a_step_with_the_true_token_lands_a_level_lower(num_levels):
    alpha, sigma = denoised.schedule(num_levels)
    assert alpha[0] == 1 and sigma[0] == 0 and sigma[-1] > 0.999
    assert (np.diff(sigma) > 0).all()
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    clean, noise = jax.random.normal(jax.random.key(0), (2, num_levels, 7))
    level = jnp.arange(1, num_levels + 1)
    found = denoised.stepped(
        alpha[1:, None] * clean + sigma[1:, None] * noise, clean, level, num_levels
    )
    wanted = alpha[:-1, None] * clean + sigma[:-1, None] * noise
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_without_levels_it_is_speculative_jacobi():
    for transport in ("independent",):
        for temperature in (0.0, 1.0):
            same = {"max_new_tokens": 12, "window": 4}
            same["knobs"] = {"temperature": temperature}
            key = jax.random.key(1)
            found, stats = run(
                methods.sjd2, MODEL, PARAMS, PROMPT, key, levels=0,
                transport=transport, **same,
            )  # fmt: skip
            wanted, its = run(
                methods.sjd, MODEL, PARAMS, PROMPT, key, transport=transport, **same
            )
            np.testing.assert_array_equal(found.tokens, wanted.tokens)
            np.testing.assert_array_equal(stats.num_calls, its.num_calls)


def decoder(num_levels, transport, change=lambda drafter: drafter):
    sampling = Sampling(1.0)
    drafter = denoised.denoised(TOY, 3, sampling, num_levels, transport=transport)
    return speculative.draft_verify(
        TOY, change(drafter), max_new_tokens=test_exact.NEW, sampling=sampling,
        acceptance=accept.by_node(accept.rejection()),
    )  # fmt: skip


@pytest.mark.parametrize("num_levels, transport", [(1, "maximal"), (2, "independent")])
def test_denoised_guesses_are_lossless_in_law(num_levels, transport):
    assert excess(decoder(num_levels, getattr(guesses, transport)())) < 4.5


def test_a_guess_behind_noise_is_biased():
    """Negative control: proposals though what stands before them is no token yet."""

    def unguarded(drafter):
        def propose(params, keys, state, prefix):
            draft, after = drafter.propose(params, keys, state, prefix)
            clean = state._replace(level=jnp.zeros_like(state.level))
            whole, _ = drafter.propose(params, keys, clean, prefix)
            return whole._replace(extra=draft.extra), after

        return drafter._replace(propose=propose)

    assert excess(decoder(2, guesses.independent(), unguarded)) > 8


def test_noise_changes_no_token_at_temperature_0():
    sizes = {"max_new_tokens": 12, "knobs": {"temperature": 0.0}}
    key = jax.random.key(0)
    out, stats = run(
        methods.sjd2, MODEL, PARAMS, PROMPT, key, window=6, levels=2, **sizes
    )
    wanted, slow = run(methods.autoregressive, MODEL, PARAMS, PROMPT, key, **sizes)
    np.testing.assert_array_equal(out.tokens, wanted.tokens)
    assert (stats.num_calls < slow.num_calls).any()
    # What stands at a noisy slot is asked for too.
    np.testing.assert_array_equal(stats.num_query_tokens, 7 * stats.num_calls)


def test_a_model_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="embeddings"):
        methods.sjd2(test_exact.CAUSAL, max_new_tokens=4)
