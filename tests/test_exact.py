"""Lossless in law: 1e5 rows against the exact joint, with controls that must fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import NodeRule, Sampling
from pdecode.decode import decode
from pdecode.drafters import causal, features, guesses, iterates
from pdecode.families import any_subset, masked, speculative
from pdecode.models import draft_layers, toy
from pdecode.models.config import Config
from pdecode.rules import accept, commit

VOCAB, NEW = 2, 5
LENGTH = NEW + 1
JOINT = toy.joint(3, VOCAB, LENGTH, sharpness=2.0)
NEAR = toy.mixed(JOINT, toy.joint(4, VOCAB, LENGTH, sharpness=2.0), 0.5)
CAUSAL = toy.make_model(VOCAB, LENGTH)
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked")
IN_BLOCKS = toy.make_model(
    VOCAB, LENGTH, predicts="masked", attention="block_causal", block_len=3
)._replace(max_positions=None)  # the canvas has room for a block that is not reached
SAMPLING = Sampling(1.0, banned=(VOCAB,))
ROWS, CHUNKS = 12500, 8  # 1e5 rows


def exact_law():
    """Probability of each of the V**NEW continuations of the prompt [0]."""
    strings = np.asarray(JOINT.strings)
    probs = np.exp(np.asarray(JOINT.log_probs, np.float64))
    law = np.zeros(VOCAB**NEW)
    for string, prob in zip(strings, probs):
        if string[0] == 0:
            law[int("".join(map(str, string[1:])), VOCAB)] += prob
    return law / law.sum()


def histogram(decoder, params):
    """Counts [V**NEW] of 1e5 sampled continuations."""
    prompt = prompts.from_rows([[0]] * ROWS, max_new_tokens=NEW)
    weights = jnp.array([VOCAB ** (NEW - 1 - i) for i in range(NEW)])

    # The suite compiles without optimising; these programs run long enough for some.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def outcomes(key):
        out, _ = decode(decoder, params, prompt, key)
        codes = (out.tokens[:, 1 : NEW + 1] * weights[None]).sum(1)
        return jnp.zeros(VOCAB**NEW, jnp.int32).at[codes].add(1)

    return sum(np.asarray(outcomes(jax.random.key(seed))) for seed in range(CHUNKS))


def distance(decoder, params):
    """(total variation, its noise floor, chi-square less its mean in sd).

    The floor is what 1e5 draws from the exact law itself stay under 999 times in 1000.
    """
    law, counts = exact_law(), histogram(decoder, params)
    total = counts.sum()
    variation = 0.5 * np.abs(counts / total - law).sum()
    draws = np.random.default_rng(0).multinomial(total, law, size=4000) / total
    floor = np.quantile(0.5 * np.abs(draws - law).sum(1), 0.999)
    # Rare outcomes share a cell: chi-square needs an expectation of a few.
    rare = total * law < 10
    expected = np.append(total * law[~rare], total * law[rare].sum())
    observed = np.append(counts[~rare], counts[rare].sum())
    chi2 = ((observed - expected) ** 2 / np.maximum(expected, 1)).sum()
    freedom = len(expected) - 1
    return variation, floor, (chi2 - freedom) / np.sqrt(2 * freedom)


def assert_exact(decoder, params):
    variation, floor, excess = distance(decoder, params)
    assert variation < floor, (variation, floor)
    assert excess < 4.5, excess


def assert_biased(decoder, params):
    variation, floor, excess = distance(decoder, params)
    assert variation > floor, (variation, floor)
    assert excess > 8, excess


def paired(method, **sizes):
    decoder = method(CAUSAL, CAUSAL, max_new_tokens=NEW, temperature=1.0, **sizes)
    return decoder, {"model": JOINT, "drafter": NEAR}


def single(method, model=CAUSAL, **sizes):
    decoder = method(model, max_new_tokens=NEW, temperature=1.0, **sizes)
    return decoder, JOINT


# A layer of random weights on the toy's laws: what it drafts is often refused.
_SIZES = Config(vocab_size=VOCAB + 1, width=VOCAB + 1, num_layers=1, num_heads=1,
                head_dim=4, mlp_width=8)  # fmt: skip
_INNER = draft_layers.make_layer(_SIZES)


def _layer_apply(params, target, query, cache):
    query = query._replace(extra=jax.nn.softmax(query.extra))
    return _INNER.apply(params["layer"], params, query, cache)


LAYER = _INNER._replace(
    apply=_layer_apply, law=lambda params, target, found: (found, CAUSAL.head(target))
)
LAYER_PARAMS = {
    "layer": draft_layers.init(_SIZES, jax.random.key(2)),
    "embed": jax.random.normal(jax.random.key(3), (VOCAB + 1, VOCAB + 1)),
}
ON_LAYER = {"model": JOINT, "layer": LAYER_PARAMS}


def layered(method, **sizes):
    decoder = method(CAUSAL, LAYER, max_new_tokens=NEW, temperature=1.0, **sizes)
    return decoder, ON_LAYER


EXACT = {
    "plain": lambda: single(methods.autoregressive),
    "speculative": lambda: paired(methods.speculative_sampling, num_draft=2),
    "pearl": lambda: paired(methods.pearl, window=3),
    "easy_spec": lambda: paired(methods.easy_spec, num_draft=2),
    "quantspec": lambda: single(methods.quantspec, num_draft=2, group=3),
    "block_verification": lambda: paired(methods.block_verification, num_draft=3),
    "specinfer": lambda: paired(methods.specinfer, branching=(2, 1)),
    "specinfer_without": lambda: paired(
        methods.specinfer, branching=(2, 2), draws="without_replacement"
    ),
    "greedy_multi_draft": lambda: paired(
        methods.specinfer, branching=(2, 2), draws="greedy"
    ),
    "spectr": lambda: paired(methods.spectr, num_drafts=3, num_draft=2),
    "traversal": lambda: paired(methods.traversal_verification, branching=(2, 2)),
    "eagle": lambda: layered(methods.eagle, branching=(2, 1)),
    "eagle_drawn": lambda: layered(
        methods.eagle, branching=(2, 1), draws="without_replacement"
    ),
    "eagle2": lambda: layered(methods.eagle2, num_nodes=4, width=2, max_depth=2),
    "sequoia": lambda: paired(
        methods.sequoia, num_nodes=5, max_depth=3, rates=(60, 30)
    ),
    "sjd": lambda: single(methods.sjd, window=3, transport="independent"),
    "mc_sjd": lambda: single(methods.sjd, window=3, transport="maximal"),
    "mc_sjd_repeat": lambda: single(
        methods.sjd, window=3, transport="maximal", start="repeat"
    ),
    "gs_sjd": lambda: single(methods.sjd, window=3, transport="gumbel"),
    "llada_random": lambda: single(methods.llada, MASKED, order="random"),
    "llada_entropy": lambda: single(methods.llada, MASKED, order="entropy"),
    "llada_margin": lambda: single(methods.llada, MASKED, order="margin"),
    "llada_max_prob": lambda: single(methods.llada, MASKED, order="max_prob"),
    "eb_gamma_0": lambda: single(methods.eb_sampler, MASKED, gamma=0.0),
    "bd3lm": lambda: single(methods.bd3lm, IN_BLOCKS),
    "assd_2": lambda: single(methods.assd, MASKED, num_draft=2),
    "assd": lambda: single(methods.assd, MASKED, num_draft=4),
    "raster": lambda: single(methods.any_order, MASKED, order="raster"),
    "random_order": lambda: single(methods.any_order, MASKED, order="random"),
}


# Each of these compiles a program for many rows; one a family runs by default.
FIRST = ("plain", "speculative", "mc_sjd", "llada_entropy", "raster")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FIRST else pytest.mark.thorough)
        for name in EXACT
    ],
)
def test_lossless_in_law(name):
    assert_exact(*EXACT[name]())


@pytest.mark.thorough
def test_choosing_by_the_sampled_token_is_biased():
    """Even one token a step: low confidence is not an exact order."""
    assert_biased(*single(methods.llada, MASKED, order="low_confidence"))
    assert_biased(*single(methods.dream, MASKED, alg="maskgit_plus"))


def test_two_tokens_a_step_are_biased():
    """An entropy order is exact for one token at a time, not for two."""
    decoder = masked.masked_diffusion(
        MASKED,
        commit.stateless(
            lambda key, row, p: commit.best(-p.entropy, row.open, 2), ("entropy",)
        ),
        max_new_tokens=NEW,
        sampling=Sampling(1.0),
    )
    assert_biased(decoder, JOINT)


def test_drafts_taken_as_they_are_are_biased():
    """Independent drafts of several positions are not the joint."""
    decoder = any_subset.any_subset(
        MASKED, max_new_tokens=NEW, num_draft=3, sampling=Sampling(1.0),
        rule=NodeRule(lambda p, q, tokens: (jnp.ones(1), p), max_children=1),
    )  # fmt: skip
    assert_biased(decoder, JOINT)


@pytest.mark.thorough
def test_an_old_q_after_coupling_is_biased():
    """A kept guess must take over the law that kept it (released MC-SJD code: no)."""
    right = iterates.iterate(CAUSAL, 3, SAMPLING, transport=guesses.maximal())

    def observe(params, keys, state, round):
        after = right.observe(params, keys, state, round)
        shift = round.num_accepted[:, None] + 1 + jnp.arange(3)[None]
        old = jnp.minimum(shift, 2)
        kept = shift < 3
        kept &= jnp.take_along_axis(state.tokens, old, 1) == after.tokens

        def keep(mine, its):
            picked = jnp.take_along_axis(its, old, 1)
            return jnp.where(kept, picked, mine)

        hidden = jnp.take_along_axis(state.hidden, old[..., None], 1)
        return after._replace(
            origin=keep(after.origin, state.origin),
            hidden=jnp.where(kept[..., None], hidden, after.hidden),
        )

    decoder = speculative.draft_verify(
        CAUSAL,
        right._replace(observe=observe),
        max_new_tokens=NEW,
        sampling=SAMPLING,
        acceptance=accept.by_node(accept.rejection()),
    )
    assert_biased(decoder, JOINT)


@pytest.mark.thorough
def test_draft_noise_by_position_is_biased_under_block_verification(monkeypatch):
    """A later round that visits a position again must draft with fresh noise."""
    # A drafter blind to its context repeats itself when its noise does.
    flat = toy.table(
        JOINT.strings, np.full(len(JOINT.strings), float(VOCAB) ** -LENGTH)
    )
    decoder, _ = paired(methods.block_verification, num_draft=3)
    assert_exact(decoder, (JOINT, flat))
    real = rng.noise

    def stale(keys, purpose, positions, **place):
        if purpose == rng.DRAFT:
            place = {}
        return real(keys, purpose, positions, **place)

    monkeypatch.setattr(rng, "noise", stale)
    decoder, _ = paired(methods.block_verification, num_draft=3)
    assert_biased(decoder, (JOINT, flat))


@pytest.mark.thorough
def test_best_tokens_judged_as_if_they_were_drawn_are_biased():
    """A layer's likeliest token is no draw from its law, nor may it be judged so."""
    right = features.static_tree(
        CAUSAL, LAYER, trees.chain(2), SAMPLING, draws="without_replacement"
    )
    best = features.static_tree(CAUSAL, LAYER, trees.chain(2), SAMPLING)

    def propose(params, keys, state, prefix):
        draft, after = right.propose(params, keys, state, prefix)
        given, _ = best.propose(params, keys, state, prefix)
        return draft._replace(tokens=given.tokens), after

    decoder = speculative.draft_verify(
        CAUSAL,
        right._replace(propose=propose),
        max_new_tokens=NEW,
        sampling=SAMPLING,
        acceptance=accept.by_node(accept.rejection()),
    )
    assert_biased(decoder, ON_LAYER)


def test_a_residual_from_p_is_biased():
    rule = accept.rejection()
    wrong = accept.NodeRule(
        lambda p, q, tokens: (rule.apply(p, q, tokens)[0], p), max_children=1
    )
    decoder = speculative.draft_verify(
        CAUSAL,
        causal.draft_model(CAUSAL, trees.chain(2), SAMPLING),
        max_new_tokens=NEW,
        sampling=SAMPLING,
        acceptance=accept.by_node(wrong),
    )
    assert_biased(decoder, {"model": JOINT, "drafter": NEAR})
