"""A masked model drafts, an autoregressive one judges: APD and guided diffusion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, rng
from pdecode.decode import run
from pdecode.families import judged
from pdecode.models import toy

VOCAB, LENGTH, EOS, NEW = 4, 14, 3, 8
LAW = toy.chain(2587, VOCAB, LENGTH)
OTHER = toy.chain(5, VOCAB, LENGTH)
SHARP = toy.chain(7, VOCAB, LENGTH, sharpness=40.0)  # next to deterministic
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,))
CAUSAL = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))
PROMPT = prompts.from_rows(
    [[0, 1], [2], [0, 2, 1], [1, 1]], max_new_tokens=[8, 5, 8, 8]
)


def both(method, *, drafts=LAW, judges=OTHER, **settings):
    made = run(
        method, (MASKED, CAUSAL), {"model": drafts, "judge": judges}, PROMPT,
        jax.random.key(0), max_new_tokens=NEW, **settings,
    )  # fmt: skip
    return jax.tree.map(np.asarray, made)


def alone(law, temperature=0.0):
    made = run(
        methods.autoregressive, CAUSAL, law, PROMPT, jax.random.key(0),
        max_new_tokens=NEW, knobs={"temperature": temperature},
    )  # fmt: skip
    return jax.tree.map(np.asarray, made[0])


def texts(out):
    return [
        out.tokens[b, s : s + n].tolist()
        for b, (s, n) in enumerate(zip(out.start, out.lengths))
    ]


def test_a_judge_that_corrects_is_its_own_greedy_decoding():
    """Lossless for the wrong model, as told; a diffusion on mismatch is not."""
    out, stats = both(methods.guided_diffusion, test="deterministic")
    assert texts(out) == texts(alone(OTHER))
    assert (stats.num_calls == stats.num_draft_calls).all()
    other, _ = both(
        methods.guided_diffusion, test="deterministic", on_mismatch="diffusion"
    )
    assert texts(other) != texts(out)


def test_one_law_for_both_is_one_round():
    """Where the drafted marginals are the judge's own law; another judge corrects."""
    sizes = {"drafts": SHARP, "test": "deterministic"}
    out, stats = both(methods.guided_diffusion, judges=SHARP, **sizes)
    assert (stats.num_calls == 1).all() and texts(out) == texts(alone(SHARP))
    _, stats = both(methods.guided_diffusion, judges=OTHER, **sizes)
    assert (stats.num_calls > 1).any()


def test_looser_tests_take_more():
    calls = {
        name: both(methods.guided_diffusion, test=name, knobs=knobs)[1].num_calls.sum()
        for name, knobs in (
            ("deterministic", {}),
            ("topk_relative", {}),
            ("topk", {"top_k": VOCAB}),
            ("threshold", {"threshold": 0.0}),
        )
    }
    assert calls["topk"] == calls["threshold"] == len(PROMPT.lengths)
    assert calls["topk"] < calls["topk_relative"] <= calls["deterministic"]


def test_a_mixture_of_the_draft_alone_takes_all():
    for ahead, rounds in ((4, 2), (3, 3)):
        out, stats = both(
            methods.apd, max_lookahead=ahead, knobs={"mixture_weight": 1.0}
        )
        full = out.lengths == NEW
        assert full.any() and (stats.num_calls[full] == rounds).all()
    _, stats = both(methods.apd, max_lookahead=4, knobs={"mixture_weight": 0.0})
    assert stats.num_calls.sum() > 2 * len(full)


def test_a_lookahead_of_one_is_the_masked_model_from_left_to_right():
    out, stats = both(methods.apd, max_lookahead=1, knobs={"mixture_weight": 0.0})
    assert texts(out) == texts(alone(LAW)) != texts(alone(OTHER))
    saw_eos = out.stopped_by == 1
    np.testing.assert_array_equal(stats.num_calls, out.lengths + saw_eos)


def test_shared_noise_agrees_as_often_as_the_closed_form():
    """sum over v of 1 / sum over w of max(p_w / p_v, q_w / q_v), within 3 errors."""
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.3, 0.1, 0.4])
    ratio = np.maximum(p[None] / p[:, None], q[None] / q[:, None])
    expected = (1 / ratio.sum(1)).sum()
    rows = 20000
    keys = rng.noise(
        rng.row_keys(jax.random.key(1), jnp.arange(rows)), rng.TARGET,
        jnp.zeros((rows, 1), jnp.int32),
    )  # fmt: skip

    def agreed(coupling):
        found = {}

        def keep(model, judge, draw, verdict, **sizes):
            found.update(draw=draw, verdict=verdict)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judged, "judged", keep)
            methods.apd(
                MASKED, CAUSAL, max_new_tokens=1, temperature=1.0, mixture_weight=0.0,
                coupling=coupling,
            )  # fmt: skip

        @jax.jit
        def stays(keys):
            ours, its = (
                jnp.broadcast_to(jnp.log(law), (rows, 1, VOCAB)) for law in (p, q)
            )
            tokens = found["draw"](ours, keys)
            return found["verdict"](judged.Drafted(tokens, ours, its, keys))[0].mean()

        return float(stays(keys))

    error = np.sqrt(expected * (1 - expected) / rows)
    assert abs(agreed("gumbel") - expected) < 3 * error
    # Control: independent draws would agree less often, an argmax as often as p says.
    assert abs(expected - (p * q).sum()) > 10 * error
    assert abs(agreed("argmax") - p[q.argmax()]) < 3 * error


def test_models_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="the judge must be autoregressive"):
        methods.apd(MASKED, MASKED, max_new_tokens=4)
    wide = toy.make_model(VOCAB + 1, LENGTH)
    with pytest.raises(ValueError, match="need one vocabulary"):
        methods.apd(MASKED, wide, max_new_tokens=4)
