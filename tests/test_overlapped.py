"""PEARL: its law phase by phase, its phases counted, two models that do not wait."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_exact
from test_jacobi import excess

from pdecode import decode as decode_module
from pdecode import methods, prompts
from pdecode.contracts import Draft, NodeRule, Prediction, Sampling
from pdecode.families import overlapped
from pdecode.models import toy, transformer
from pdecode.rules import accept

VOCAB, NEW, WINDOW = 2, 5, 3


# The law, by enumeration of all phases.


def laws(seed, kind="random"):
    """Target and drafter given the tokens so far: dict prefix -> [V]."""
    draw = np.random.default_rng(seed)
    target, drafter = {}, {}
    for size in range(NEW + 2 * WINDOW):
        for prefix in itertools.product(range(VOCAB), repeat=size):
            target[prefix] = draw.dirichlet(np.ones(VOCAB))
            drafter[prefix] = draw.dirichlet(np.ones(VOCAB))
            if kind == "least":  # always the token that the target wants least
                drafter[prefix] = np.eye(VOCAB)[target[prefix].argmin()]
            if kind == "greedy":
                target[prefix] = np.eye(VOCAB)[target[prefix].argmax()]
                drafter[prefix] = np.eye(VOCAB)[drafter[prefix].argmax()]
    return target, drafter


@functools.partial(jax.jit, static_argnums=0)
def judged(rule, pending, count, pending_q, first, first_q, p):
    """Stop [B, 1 + W] and residual [B, 1 + W, V], as the family asks its rule."""
    new = jnp.broadcast_to(first[:, None], (*first.shape, WINDOW))
    new_q = jnp.broadcast_to(first_q[:, None], (first.shape[0], WINDOW, VOCAB))
    line = overlapped.chained(pending, new, count)
    nodes = jnp.arange(WINDOW)[None]
    line = jnp.where(nodes <= count[:, None], line, -1)
    parents = jnp.broadcast_to(nodes - 1, line.shape)
    q = overlapped.chained(pending_q, new_q, count)
    return jax.vmap(accept.by_node(rule).apply)(
        Draft(line, parents, q=q), Prediction(probs=p)
    )


def rows_of(states, target, drafter):
    """Every state with every first draft, as arrays for `judged`."""
    pairs = [(state, first) for state in states for first in range(VOCAB)]
    pending = np.zeros((len(pairs), WINDOW - 1), np.int32) - 1
    pending_q = np.zeros((len(pairs), WINDOW - 1, VOCAB))
    p = np.ones((len(pairs), WINDOW + 1, VOCAB)) / VOCAB
    for row, ((text, waiting), _) in enumerate(pairs):
        pending[row, : len(waiting)] = waiting
        for lane in range(len(waiting) + 1):
            p[row, lane] = target[text + waiting[:lane]]
        for node in range(len(waiting)):
            pending_q[row, node] = drafter[text + waiting[:node]]
    count = np.array([len(waiting) for (_, waiting), _ in pairs])
    first = np.array([first for _, first in pairs])
    first_q = np.array([drafter[text + waiting] for (text, waiting), _ in pairs])
    return pairs, (pending, count, pending_q, first, first_q, p)


def enumerated(target, drafter, rule=None, keeps_refused=False):
    """(law of the first NEW tokens, expected phases): dict tokens -> probability."""
    rule = accept.rejection() if rule is None else rule
    states, done, phases = {((), ()): 1.0}, {}, 0.0
    while states:
        phases += sum(states.values())
        pairs, arrays = rows_of(states, target, drafter)
        stop, residual = jax.tree.map(np.asarray, judged(rule, *arrays))
        after = {}

        def add(text, waiting, mass, after=after):
            if mass > 0 and len(text) >= NEW:
                done[text[:NEW]] = done.get(text[:NEW], 0) + mass
            elif mass > 0:
                after[text, waiting] = after.get((text, waiting), 0) + mass

        for row, ((text, waiting), first) in enumerate(pairs):
            mass = states[text, waiting] * drafter[text + waiting][first]
            for leaf in range(len(waiting) + 1):
                for token in range(VOCAB):
                    chance = stop[row, leaf] * residual[row, leaf, token]
                    ends = text + waiting[:leaf] + (token,)
                    left = waiting[leaf + 1 :] if keeps_refused else ()
                    left = left if len(left) == WINDOW - 1 else ()
                    add(ends, left, mass * chance)
            ends = text + waiting + (first,)
            kept = mass * stop[row, len(waiting) + 1]
            for behind in itertools.product(range(VOCAB), repeat=WINDOW - 1):
                drawn = [
                    drafter[ends + behind[:i]][behind[i]] for i in range(len(behind))
                ]
                add(ends, behind, kept * np.prod(drawn))
        states = after
    return done, phases


def distance(found, target):
    """Total variation from the target's law of NEW tokens."""
    return 0.5 * sum(
        abs(
            found.get(text, 0)
            - np.prod([target[text[:i]][text[i]] for i in range(NEW)])
        )
        for text in itertools.product(range(VOCAB), repeat=NEW)
    )


@pytest.mark.parametrize("kind", ["random", "least", "greedy"])
def test_every_phase_together_is_the_target_law(kind):
    with jax.enable_x64(True):
        for seed in range(2):
            target, drafter = laws(seed, kind)
            found, phases = enumerated(target, drafter)
            assert distance(found, target) < 1e-12
            assert phases <= NEW + 1e-9
            assert kind != "random" or phases < NEW - 0.5


def test_a_residual_from_p_is_biased():
    """Negative control: the correction must leave out what drafts already bring."""
    right = accept.rejection()
    wrong = NodeRule(lambda p, q, t: (right.apply(p, q, t)[0], p), max_children=1)
    with jax.enable_x64(True):
        target, drafter = laws(0)
        assert distance(enumerated(target, drafter, wrong)[0], target) > 0.01


def test_one_draw_for_two_tests_is_biased():
    """Negative control, by arithmetic: what was accepted before inflates the next.

    With u < a known of the draw that tested the token before, u < b has probability
    min(1, b / a).
    """
    draw = np.random.default_rng(1)
    p, q = draw.dirichlet(np.ones(3), 2), draw.dirichlet(np.ones(3), 2)

    def second(is_shared):
        law = np.zeros(3)
        for x in range(3):
            a = min(1, p[0, x] / q[0, x])
            share = q[0, x] * a
            for y in range(3):
                b = min(1, p[1, y] / q[1, y])
                b = min(1, b / a) if is_shared else b
                law[y] += share * q[1, y] * b
                rest = np.maximum(p[1] - q[1], 0)
                law += share * q[1, y] * (1 - b) * rest / rest.sum()
        return law / law.sum()

    assert np.abs(second(False) - p[1]).sum() < 1e-12
    assert np.abs(second(True) - p[1]).sum() > 0.05


def test_the_compiled_loop_has_that_law():
    decoder = methods.pearl(
        test_exact.CAUSAL, test_exact.CAUSAL, max_new_tokens=test_exact.NEW, window=3,
        temperature=1.0,
    )  # fmt: skip
    params = {"model": test_exact.JOINT, "drafter": test_exact.NEAR}
    assert excess(decoder, params) < 4.5


# Phases.


def tokens_a_phase(rate, window):
    """Expected tokens of a phase where drafts are accepted independently at `rate`."""
    run = (1 - rate**window) / (1 - rate)
    return run / (1 + rate - rate**window)


@pytest.mark.parametrize("window", [4])
def test_phases_follow_the_formula(window):
    """Laws that look at nothing: every test passes with one probability."""
    size, new, rows = 130, 120, 48
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    model = toy.make_model(3, size)

    def flat(law):
        return toy._chain(np.broadcast_to(law, (size, 3, 3)))

    _, stats = decode_module.run(
        methods.pearl, (model, model), {"model": flat(p), "drafter": flat(q)},
        prompts.from_rows([[0]] * rows, max_new_tokens=new), jax.random.key(0),
        knobs={"temperature": 1.0}, max_new_tokens=new, window=window,
    )  # fmt: skip
    found = float(stats.num_committed.sum() / stats.num_calls.sum())
    rate = np.minimum(p, q).sum()
    np.testing.assert_allclose(found, tokens_a_phase(rate, window), rtol=0.04)
    np.testing.assert_array_equal(stats.num_draft_calls, window * stats.num_calls)


def test_a_run_goes_on_until_a_draft_is_refused():
    """With one law for both every phase but the first brings a whole window."""
    law = toy.chain(3, 3, 24)
    model = toy.make_model(3, 24)
    _, stats = decode_module.run(
        methods.pearl, (model, model), {"model": law, "drafter": law},
        prompts.from_rows([[0], [1, 2]], max_new_tokens=17), jax.random.key(0),
        knobs={"temperature": 0.0}, max_new_tokens=17, window=4,
    )  # fmt: skip
    assert stats.num_calls.tolist() == [1 + 16 // 4] * 2


# Two models side by side.

CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=1, num_heads=4, num_kv_heads=2, mlp_width=24
)
MODEL = transformer.make_model(CONFIG)
OWN = transformer.init(CONFIG, jax.random.key(0))
FAR = transformer.init(CONFIG, jax.random.key(1))
PARAMS = {
    "model": OWN,
    "drafter": jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, OWN, FAR),
}
PROMPT = prompts.from_rows([[1, 2, 3], [4], [5, 6, 7, 8]], max_new_tokens=[11, 12, 7])


def test_each_model_alone_and_then_their_join_is_the_decode():
    """Three programs, the first two of which could run at once on machines apart."""
    decoder = methods.pearl(MODEL, MODEL, max_new_tokens=12, window=3, temperature=0.0)
    plan = decoder.step.args[0]
    key = jax.random.key(0)
    carry = jax.jit(functools.partial(decode_module.start, decoder))(
        PARAMS, PROMPT, key
    )
    draft, verify, join = (
        jax.jit(functools.partial(phase, plan))
        for phase in (overlapped.draft, overlapped.verify, overlapped.join)
    )
    state, turns = carry.state, 0
    while not bool(decoder.done(state).all()):
        drafted = draft({"drafter": PARAMS["drafter"]}, carry.keys, state)
        found = verify({"model": PARAMS["model"]}, carry.keys, state)
        state, _ = join(PARAMS, carry.keys, state, drafted, *found)
        turns += 1
    whole, stats = jax.jit(functools.partial(decode_module.decode, decoder))(
        PARAMS, PROMPT, key
    )
    assert turns == stats.num_steps < 12
    made = decoder.output(state)
    np.testing.assert_array_equal(made.tokens, whole.tokens)
    _caches_hold_what_was_committed(state)


def test_a_device_for_each_model_decodes_the_same():
    """One program over a mesh axis of two, whose devices call a model each."""
    mesh = jax.make_mesh(
        (2,), ("role",), devices=jax.devices()[:2],
        axis_types=(jax.sharding.AxisType.Auto,),
    )  # fmt: skip
    sizes = {"max_new_tokens": 12, "sampling": Sampling(0.0)}
    one = overlapped.overlapped(MODEL, MODEL, 3, **sizes)
    two = overlapped.overlapped(MODEL, MODEL, 3, **sizes, run=overlapped.apart("role"))
    everywhere = jax.sharding.PartitionSpec()
    wanted = jax.jit(functools.partial(decode_module.decode, one))
    found = jax.jit(
        jax.shard_map(
            functools.partial(decode_module.decode, two), mesh=mesh,
            in_specs=everywhere, out_specs=everywhere, check_vma=False,
        )
    )  # fmt: skip
    key = jax.random.key(0)
    jax.tree.map(
        np.testing.assert_array_equal,
        found(PARAMS, PROMPT, key),
        wanted(PARAMS, PROMPT, key),
    )


@functools.partial(jax.jit, static_argnums=2)
def prefilled(params, text, slots):
    return prompts.prefill(MODEL, params, text, MODEL.init_cache(text, slots), drop=1)[
        1
    ]


def _caches_hold_what_was_committed(state):
    """Below the root both caches are those of a fresh prefill of the text."""
    length = np.asarray(state.prefix.length)
    text = [row[:n].tolist() for row, n in zip(np.asarray(state.prefix.tokens), length)]
    fresh = prompts.from_rows(text, max_new_tokens=1)
    for role, found in (("model", state.cache), ("drafter", state.drafter.cache)):
        slots = jax.tree.leaves(found)[0].shape[2]
        wanted = prefilled(PARAMS[role], fresh, slots)
        for mine, its in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
            for b, n in enumerate(length):
                np.testing.assert_allclose(
                    mine[b, :, : n - 1], its[b, :, : n - 1], atol=1e-5
                )


def test_a_state_keeps_its_dtypes_where_weights_and_compute_differ():
    config = transformer.Config(
        vocab_size=11, width=8, num_layers=1, num_heads=2, dtype="bfloat16"
    )
    model, own = (
        transformer.make_model(config),
        transformer.init(config, jax.random.key(0)),
    )
    decoder = methods.pearl(model, model, max_new_tokens=4, window=2)
    prompt, params = (
        prompts.from_rows([[1, 2]], max_new_tokens=4),
        {"model": own, "drafter": own},
    )
    out, _ = decode_module.decode(decoder, params, prompt, jax.random.key(0))
    assert out.lengths.tolist() == [4]
