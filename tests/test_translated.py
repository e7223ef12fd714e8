"""Drafters of another vocabulary: a restricted law, and exact whatever it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_exact
from test_jacobi import excess

from pdecode import methods, prompts, trees
from pdecode.contracts import Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.models import toy, translated
from pdecode.rules import accept

# The target's ids are a, b; the drafter's are c, b, a: c is never drafted.
WORDS, OWN_WORDS = {"a": 0, "b": 1}, {"c": 0, "b": 1, "a": 2}
OWN_LAW = toy.joint(9, 3, test_exact.LENGTH, sharpness=2.0)
OWN = toy.make_model(3, test_exact.LENGTH)
# The target has a mask id too, which is no word of either.
MODEL, PARAMS = translated.translated(OWN, OWN_LAW, OWN_WORDS, WORDS, 3)
SAMPLING = Sampling(1.0)


def test_the_law_is_restricted_to_shared_tokens():
    texts = [[0], [1, 0]]
    drafter = causal.draft_model(MODEL, trees.chain(1), SAMPLING)
    params = {"model": test_exact.JOINT, "drafter": PARAMS}
    plan = speculative.checked(test_exact.CAUSAL, drafter, 4, SAMPLING, "match", ())

    @jax.jit
    def drafted(keys):
        prompt = prompts.from_rows(texts, max_new_tokens=4)
        state, _ = speculative.init(plan, params, keys, prompt)
        draft, _ = drafter.propose(params, keys, state.drafter, state.prefix)
        return draft.q[:, 0]

    found = np.asarray(drafted(jax.random.split(jax.random.key(0), 2)))
    strings, chances = map(np.asarray, OWN_LAW)
    for text, q in zip(texts, found):
        own = [[2, 1][token] for token in text]
        weight = np.exp(chances) * (strings[:, : len(own)] == own).all(1)
        law = np.bincount(strings[:, len(own)], weights=weight, minlength=3)
        expected = law[[2, 1]] / law[[2, 1]].sum()
        np.testing.assert_allclose(q, [*expected, 0], atol=1e-5)


def decoder(change=lambda q: q):
    right = causal.draft_model(MODEL, trees.chain(2), SAMPLING)

    def propose(params, keys, state, prefix):
        draft, state = right.propose(params, keys, state, prefix)
        return draft._replace(q=change(draft.q)), state

    return speculative.draft_verify(
        test_exact.CAUSAL,
        right._replace(propose=propose),
        max_new_tokens=test_exact.NEW,
        sampling=SAMPLING,
        acceptance=accept.by_node(accept.rejection()),
    )


def test_translated_drafts_are_lossless_in_law():
    params = {"model": test_exact.JOINT, "drafter": PARAMS}
    assert excess(decoder(), params) < 4.5
    # Negative control: the law is told as it was before it was restricted.
    assert excess(decoder(lambda q: q * jnp.array([[[0.5, 0.9, 1]]])), params) > 8


def test_a_space_is_a_space():
    own = {"\u2581the": 3, "x": 1}
    found = translated.matched(own, {"\u0120the": 0, "y": 1, "x": 4}, 6)
    assert found.tolist() == [3, -1, -1, -1, 1, -1]


def test_what_cannot_be_translated_is_refused():
    with pytest.raises(ValueError, match="share none of 1 tokens"):
        translated.translated(OWN, OWN_LAW, OWN_WORDS, {"z": 0}, 2)
    capped = OWN._replace(head=lambda p: OWN.head(p)._replace(soft_cap=3.0))
    with pytest.raises(ValueError, match="caps its logits at 3"):
        translated.translated(capped, OWN_LAW, OWN_WORDS, WORDS, 3)
    assert methods.speculative_sampling(
        test_exact.CAUSAL, MODEL, max_new_tokens=4
    ).guarantee == "lossless"  # fmt: skip
