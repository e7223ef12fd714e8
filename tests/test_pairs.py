"""Every drafter with every acceptance rule, and drafters that propose nonsense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import prompts, rng, trees
from pdecode.contracts import Draft, Drafter, Judge, Prediction, Sampling
from pdecode.decode import decode
from pdecode.drafters import causal, grown, ignore, ngram, nothing, paced, pruned
from pdecode.families import speculative, speculative_calls
from pdecode.models import toy
from pdecode.rules import accept, relaxed

VOCAB, LENGTH, NEW = 4, 20, 12
TARGET, NEAR = toy.chain(5, VOCAB, LENGTH), toy.chain(6, VOCAB, LENGTH)
MODEL = toy.make_model(VOCAB, LENGTH)
PROMPT = prompts.from_rows(
    [[0, 1], [2], [3, 3, 1], [1]], max_new_tokens=[12, 10, 12, 12]
)
SAMPLING = Sampling(1.0)


def tree(draws):
    return causal.draft_model(MODEL, trees.expand((2, 2)), SAMPLING, draws=draws)


# Name: (drafter, is a chain, siblings are independent draws).
DRAFTERS = {
    "nothing": (nothing(), True, False),
    "lookup": (ngram.prompt_lookup(3, 2), True, False),
    "chain": (causal.draft_model(MODEL, trees.chain(3), SAMPLING), True, True),
    "coupled": (
        causal.draft_model(MODEL, trees.chain(3), SAMPLING, draws="coupled"),
        True, False,
    ),
    "unsure": (
        causal.draft_model(MODEL, trees.chain(3), SAMPLING, min_confidence=0.5),
        True, True,
    ),
    "iid": (tree("with_replacement"), False, True),
    "in_turn": (tree("without_replacement"), False, False),
    "greedy": (tree("greedy"), False, False),
    "grown": (grown.grown_tree(MODEL, 6, width=2, max_depth=3), False, False),
    "sized": (
        pruned.by_costs(
            grown.grown_tree(MODEL, 6, width=2, max_depth=3), "auto", (1.0,) * 6
        )[0],
        False, False,
    ),
    "paced": (
        paced.draft_model(MODEL, (0, 1, 3), paced.Prices((1.0,) * 6), SAMPLING),
        True, True,
    ),
}  # fmt: skip
RULES = {
    "rejection": accept.by_node(accept.rejection(2)),
    "k_seq": accept.by_node(accept.k_seq(2)),
    "block": accept.block_verification(),
    "traversal": accept.traversal_verification(),
    "top_match": relaxed.top_match(2),
    "typical": relaxed.typical(),
    "conditional": relaxed.conditional(),
    "rollback": relaxed.rollback(1.0),
    "grouped": accept.by_node(relaxed.grouped(1)),
    "lantern": accept.by_node(relaxed.lantern(2, delta=0.2)),
    "coarse": accept.by_node(relaxed.coarse()),
    "judged": relaxed.judged(accept.rejection(2), Judge(lambda w, hidden: hidden @ w)),
}
OTHER = {
    "lantern": jnp.asarray(relaxed.nearest(np.eye(VOCAB + 1), 3)),
    "coarse": jnp.eye(VOCAB + 1),
    "judged": jnp.ones(VOCAB + 1),
}


def decoder_of(drafter, rule):
    return speculative.draft_verify(
        MODEL, drafter, max_new_tokens=NEW, sampling=SAMPLING, acceptance=rule
    )


@functools.cache
def drafted(name):
    """A draft of every row after the prompt, and random laws at its lanes."""
    drafter = DRAFTERS[name][0]
    params = {"model": TARGET, "drafter": NEAR}

    @jax.jit
    def propose(key):
        keys = rng.row_keys(key, PROMPT.row_ids)
        plan = decoder_of(drafter, "match").init.args[0]
        state, _ = speculative.init(plan, params, keys, PROMPT)
        draft, _ = drafter.propose(params, keys, state.drafter, state.prefix)
        return speculative_calls.sanitized(draft, plan)

    draft = propose(jax.random.key(1))
    shape = (PROMPT.lengths.shape[0], 1 + drafter.num_nodes, VOCAB + 1)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    ids = jax.lax.top_k(logits, 2)[1]
    prediction = Prediction(probs=jax.nn.softmax(logits), logits=logits, top_ids=ids)
    return draft._replace(cost=None), prediction


@functools.cache
def jitted(rule, axes):
    return jax.jit(jax.vmap(rule.apply, axes))


@pytest.mark.parametrize("rule", RULES)
def test_every_drafter_meets_every_rule_or_is_refused(rule):
    """Refused where the rule's proof needs what the drafter is not; else a law."""
    made = RULES[rule]
    for name, (drafter, is_chain, is_iid) in DRAFTERS.items():
        fits = "chain" not in made.needs or is_chain
        fits &= "iid" not in made.needs or is_iid or is_chain
        if not fits:
            with pytest.raises(ValueError, match="this rule"):
                decoder_of(drafter, made)
            continue
        decoder = decoder_of(drafter, made)
        assert (decoder.guarantee == "lossless") == made.is_lossless
        draft, prediction = drafted(name)
        given, axes = (), (0, 0)
        if made.role is not None:
            given, axes = (OTHER[rule], prediction.logits), (0, 0, None, 0)
        stop, residual = jitted(made, axes)(draft, prediction, *given)
        np.testing.assert_allclose(stop.sum(1), 1, atol=1e-5, err_msg=name)
        assert (stop >= -1e-6).all() and (residual >= 0).all(), name
        # Where the path may end there is a law of the next token.
        total = residual.sum(-1)[np.asarray(stop) > 1e-6]
        np.testing.assert_allclose(total, 1, atol=1e-5, err_msg=name)
        absent = np.asarray(draft.tokens) < 0
        assert (np.asarray(stop)[:, 1:][absent] <= 1e-6).all(), name


def test_the_pairs_are_not_idle():
    """Something is accepted by each rule, and some pairs are refused."""
    accepting = {
        rule: name
        for rule, made in RULES.items()
        if made.role is None and "iid" not in made.needs
        for name in ("chain",)
        if np.asarray(jitted(made, (0, 0))(*drafted(name))[0])[:, 1:].sum() > 1e-3
    }
    assert len(accepting) == 8
    assert any(made.needs == ("chain",) for made in RULES.values())


# Nonsense. A table of drafts is data: params of the role "drafter", one entry a round.


def nonsense(num_nodes, max_depth):
    def init(params, keys, prompt, prefix, output):
        return ()

    def propose(params, keys, state, prefix):
        tokens, parents = params["drafter"]
        turn = prefix.length % tokens.shape[0]
        return Draft(tokens[turn], parents[turn]), state

    return Drafter(num_nodes, max_depth, init, propose, ignore)


def tables(seed, num_nodes, kind):
    """Tokens and parents [T, N] with every fault that comes to mind."""
    gen = np.random.default_rng(seed)
    size = (8, num_nodes)
    tokens = gen.integers(-2, VOCAB + 4, size)
    nodes = np.arange(num_nodes)
    parents = {
        "random": gen.integers(-3, num_nodes + 3, size),
        "cycle": (nodes + 1) % num_nodes + 0 * tokens,
        "own parent": nodes + 0 * tokens,
        "after children": num_nodes - 1 - nodes + 0 * tokens,
        "too deep": nodes - 1 + 0 * tokens,
        "a tree": gen.integers(-1, np.maximum(nodes, 1), size) - (nodes == 0) * 1,
    }[kind]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(parents, jnp.int32)


KINDS = ("random", "cycle", "own parent", "after children", "too deep", "a tree")


@functools.partial(jax.jit, static_argnames="decoder")
def run(decoder, params, key):
    return decode(decoder, params, PROMPT, key)


@functools.cache
def plain():
    keys = [jax.random.key(seed) for seed in range(8)]
    decoder = decoder_of(nothing(), "match")
    return [run(decoder, {"model": TARGET}, key)[0] for key in keys]


def faults(decoder, num_nodes, num_seeds):
    """Decodes that are not plain sampling, of `num_seeds` of every kind."""
    wrong = 0
    for kind in KINDS:
        for seed in range(num_seeds):
            params = {"model": TARGET, "drafter": tables(seed, num_nodes, kind)}
            out, stats = run(decoder, params, jax.random.key(seed % 8))
            assert (stats.num_calls <= stats.num_committed).all()
            wrong += not np.array_equal(out.tokens, plain()[seed % 8].tokens)
    return wrong


@pytest.mark.parametrize("num_nodes, max_depth", [(6, 3), (4, 4)])
def test_whatever_is_proposed_the_output_is_plain_sampling(num_nodes, max_depth):
    decoder = decoder_of(nonsense(num_nodes, max_depth), "match")
    assert faults(decoder, num_nodes, 40) == 0


# Ids that are fine, and never meant: one of these, by the number in the params.
ADVERSARIES = ("random", "constant", "always EOS", "stale")
ENDING = toy.make_model(VOCAB, LENGTH, eos_ids=(3,))


def adversary(num_draft):
    nth = jnp.arange(num_draft, dtype=jnp.int32)[None]

    def init(params, keys, prompt, prefix, output):
        return jnp.zeros((prefix.length.shape[0], num_draft), jnp.int32)

    def propose(params, keys, before, prefix):
        place = prefix.length[:, None] + nth
        drafts = jnp.stack(
            [(7 * place + 3 * place**2) % VOCAB, 0 * place + 1, 0 * place + 3, before]
        )
        return ngram.chain(drafts[params["drafter"]]), before

    def observe(params, keys, before, round):
        """What the target wanted there a round ago."""
        return round.prediction.token[:, :num_draft]

    return Drafter(num_draft, num_draft, init, propose, observe)


def test_adversaries_change_no_token_and_cost_no_call():
    """Under EOS too: a row ends where it does without drafts."""
    plainly, made = (
        speculative.draft_verify(ENDING, drafter, max_new_tokens=NEW, sampling=SAMPLING)
        for drafter in (nothing(), adversary(15))  # more than there is room for
    )
    num_ended = 0
    for seed in range(25):
        key = jax.random.key(seed)
        wanted, _ = run(plainly, {"model": TARGET}, key)
        num_ended += int((wanted.lengths < NEW - 2).sum())
        for kind, name in enumerate(ADVERSARIES):
            params = {"model": TARGET, "drafter": jnp.int32(kind)}
            out, stats = run(made, params, key)
            for told, found in zip(wanted[:3], out[:3]):  # tokens, start, lengths
                np.testing.assert_array_equal(found, told, err_msg=name)
            np.testing.assert_array_equal(out.stopped_by, wanted.stopped_by)
            assert (stats.num_calls <= stats.num_committed).all(), name
    assert num_ended > 40


# A tree of any shape for the rules that take one: nodes of two levels.
def adversarial_tree(num_wide):
    size = 2 * num_wide
    nodes = jnp.arange(size, dtype=jnp.int32)[None]
    parents = jnp.where(nodes < num_wide, -1, nodes - num_wide)
    chain = adversary(size)

    def propose(params, keys, before, prefix):
        draft, before = chain.propose(params, keys, before, prefix)
        return draft._replace(parents=jnp.broadcast_to(parents, (4, size))), before

    def observe(params, keys, before, round):
        return round.prediction.token[:, :size]

    return chain._replace(
        max_depth=2, propose=propose, observe=observe, wants=("token",)
    )


SHAPES = [("chain", rule) for rule in RULES]
SHAPES += [("tree", rule) for rule in RULES if "chain" not in RULES[rule].needs]


@pytest.mark.parametrize("shape, rule", SHAPES)
def test_adversaries_cost_no_call_under_any_rule(shape, rule):
    """A call gives a token at least; greedy, the lossless rules give plain decoding's.

    `test_methods.py` has every drafter's own bound.
    """
    made = RULES[rule]
    drafter = adversary(3) if shape == "chain" else adversarial_tree(2)
    drafter = drafter._replace(wants=("token",), is_iid=True)
    decoder = speculative.draft_verify(
        ENDING, drafter, max_new_tokens=NEW, sampling=Sampling(0.0), acceptance=made
    )
    base = speculative.draft_verify(
        ENDING, nothing(), max_new_tokens=NEW, sampling=Sampling(0.0)
    )
    key = jax.random.key(0)
    wanted, _ = run(base, {"model": TARGET}, key)
    other = {} if made.role is None else {made.role: OTHER[rule]}
    proposed = 0
    for kind, name in enumerate(ADVERSARIES):
        params = {"model": TARGET, "drafter": jnp.int32(kind), **other}
        out, stats = run(decoder, params, key)
        assert (stats.num_calls <= stats.num_committed).all(), name
        proposed += int(stats.num_proposed.sum())
        if made.is_lossless:
            np.testing.assert_array_equal(out.tokens, wanted.tokens, err_msg=name)
    assert proposed > 0


def test_unsanitised_nonsense_is_caught(monkeypatch):
    """Negative control: the same drafts taken as they are."""
    monkeypatch.setattr(speculative_calls, "sanitized", lambda draft, plan: draft)
    decoder = decoder_of(nonsense(6, 3), "match")
    assert faults(decoder, 6, 8) > 0
