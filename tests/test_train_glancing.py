"""The Spec-Drafter: glances, its loss, and a draft that costs one call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS, MODEL
from tiny import RUN, quiet

from pdecode import decode, methods, prompts
from pdecode.contracts import Draft, Prediction
from pdecode.data import packing
from pdecode.models import transformer
from pdecode.rules import relaxed
from pdecode.train import losses, passes, train
from pdecode.train.objectives import glancing

LENGTH, BLOCK = 14, 5
PARAMS = jax.tree.map(lambda p: 2.0 * p, transformer.init(CANVAS, jax.random.key(0)))
TOKENS = np.random.default_rng(0).integers(97, 100, (3, LENGTH)).astype(np.int32)
HOW = passes.of_decoding(CANVAS)


def config_of(**options):
    return dataclasses.replace(
        RUN, model=CANVAS, objective="glancing", row_len=LENGTH, steps=11,
        options={"block_length": BLOCK, **options},
    )  # fmt: skip


def drawn():
    return glancing.noise(config_of())(
        {"tokens": jnp.asarray(TOKENS)}, jax.random.key(3)
    )


def slow_law(row, hidden):
    """Log-laws [n, V] of a row that ends where its block does."""
    seen = np.where(hidden, CANVAS.mask_id, row)[None]
    found = losses.logits_of(CANVAS, PARAMS, passes.hidden(HOW, PARAMS, seen))
    return np.asarray(jax.nn.log_softmax(found)[0], np.float64)


def slow_nats(batch, share):
    """(nats of what is scored, how many were revealed), a row at a time."""
    nats, revealed = [], 0
    for row, first, order in zip(
        TOKENS, np.asarray(batch["first"]), np.asarray(batch["order"]), strict=True
    ):
        stop = first + BLOCK
        hidden = np.arange(stop) >= first
        guessed = slow_law(row[:stop], hidden).argmax(1)
        count = round(share * int((guessed != row[:stop])[first:].sum()))
        told = first + np.argsort(order[first:stop])[:count]
        hidden[told] = False
        law = slow_law(row[:stop], hidden)
        nats += [-law[place, row[place]] for place in np.flatnonzero(hidden)]
        revealed += count
    return nats, revealed


@pytest.mark.parametrize(("step", "share"), [(0, 0.8), (10, 0.4), (5, 0.6)])
def test_the_loss_is_the_papers_by_hand(step, share):
    batch = drawn()
    loss = jax.jit(glancing.loss(config_of(reveal_first=0.8, reveal_last=0.4)))
    value, aux = loss(PARAMS, {}, batch, None, step)
    nats, revealed = slow_nats(batch, share)
    assert revealed > 1
    assert float(aux["weight"]) == len(nats) == 3 * BLOCK - revealed
    np.testing.assert_allclose(value, np.mean(nats), rtol=1e-5)
    # The control: nothing revealed is another loss.
    assert abs(float(value) / np.mean(slow_nats(batch, 0.0)[0]) - 1) > 1e-4


def test_a_share_of_the_wrong_guesses_is_revealed_in_the_given_order():
    tokens = jnp.asarray([[5, 6, 7, 8, 9, 1]])
    block = jnp.asarray([[False, True, True, True, True, False]])
    order = jnp.asarray([[0.0, 0.4, 0.1, 0.3, 0.2, 0.0]])
    guessed = jnp.asarray([[0, 6, 0, 0, 0, 0]])  # three of the block are wrong
    for share, hidden in [(0.0, [1, 2, 3, 4]), (0.4, [1, 3, 4]), (1.0, [1])]:
        found = glancing.still_hidden(guessed, tokens, block, order, share)
        assert np.flatnonzero(found[0]).tolist() == hidden
    same = glancing.still_hidden(tokens, tokens, block, order, 1.0)
    np.testing.assert_array_equal(same, block)


def test_gradients_reach_every_parameter_and_none_flows_through_the_glance():
    batch = drawn()
    loss = glancing.loss(config_of())
    slope = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, 0)[0]))(PARAMS)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(slope))
    _, aux = loss(PARAMS, {}, batch, None, 0)

    def given(params):
        stop = batch["first"] + BLOCK
        tokens, hidden = batch["tokens"], aux["scored"]
        law = jax.nn.log_softmax(
            glancing.blank_logits(HOW, params, tokens, hidden, stop)
        )
        return losses.mean(-losses.of_tokens(law, tokens), hidden, None)[0]

    wanted = jax.jit(jax.grad(given))(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slope, wanted
    )


def test_what_stands_behind_the_block_is_not_there():
    batch = drawn()
    loss = jax.jit(glancing.loss(config_of()))
    before = loss(PARAMS, {}, batch, None, 0)[0]
    place = jnp.arange(LENGTH)[None]
    behind = place >= (batch["first"] + BLOCK)[:, None]
    assert behind.any()
    other = {**batch, "tokens": jnp.where(behind, 33, batch["tokens"])}
    assert loss(PARAMS, {}, other, None, 0)[0] == before
    # The control: what stands before it is.
    first = place == 0
    other = {**batch, "tokens": jnp.where(first, 33, batch["tokens"])}
    assert loss(PARAMS, {}, other, None, 0)[0] != before


# The decode.

TARGET = transformer.init(MODEL, jax.random.key(1))
BOTH = transformer.make_model(MODEL), transformer.make_model(CANVAS)
PROMPT = prompts.from_rows([[97, 98, 99], [100], [101, 102]], max_new_tokens=[9, 8, 3])


def run(method, models, params, **settings):
    knobs = {
        name: settings.pop(name) for name in ("temperature", "tau") if name in settings
    }
    return decode.run(
        method, models, params, PROMPT, jax.random.key(3), knobs=knobs,
        max_new_tokens=9, **settings,
    )  # fmt: skip


def test_drafts_are_the_blanks_that_training_fills():
    """What is drafted first is the best guess of the objective's first pass."""
    out, _ = run(
        methods.spec_dec, BOTH, {"model": TARGET, "drafter": PARAMS}, num_draft=4,
        beta=MODEL.vocab_size, tau=1e6, temperature=0.0,
    )  # fmt: skip
    for row, length in enumerate(PROMPT.lengths.tolist()):
        count = min(4, int(PROMPT.max_new_tokens[row]))
        tokens = np.asarray(out.tokens[row, : length + count])
        hidden = np.arange(length + count) >= length
        law = slow_law(tokens, hidden)
        law[:, CANVAS.mask_id] = -np.inf
        assert tokens[length:].tolist() == law.argmax(1)[length:].tolist()


def test_everything_accepted_is_a_call_a_block():
    _, stats = run(
        methods.spec_dec, BOTH, {"model": TARGET, "drafter": PARAMS}, num_draft=4,
        beta=MODEL.vocab_size, tau=1e6, temperature=0.0,
    )  # fmt: skip
    # 4 drafts and the target's own token a call, unless an end comes.
    assert stats.num_calls.tolist() == [2, 2, 1]
    assert stats.num_draft_calls.tolist() == [2, 2, 1]


def test_by_the_best_token_alone_it_is_the_plain_decode():
    for temperature in (0.0, 1.0):
        plain, _ = run(methods.autoregressive, BOTH[0], TARGET, temperature=temperature)
        own = {"model": TARGET, "drafter": PARAMS}
        out, _ = run(methods.spec_dec, BOTH, own, num_draft=4, temperature=temperature)
        np.testing.assert_array_equal(out.tokens, plain.tokens)
    # The control: the relaxed rule.
    own = {"model": TARGET, "drafter": PARAMS}
    out, _ = run(methods.spec_dec, BOTH, own, num_draft=4, beta=260, tau=5.0)
    plain, _ = run(methods.autoregressive, BOTH[0], TARGET)
    assert (out.tokens != plain.tokens).any()


def test_the_relaxed_rule_is_the_papers():
    """Among the best beta and at most tau nats below the best, for every draft."""
    draw = np.random.default_rng(0)
    rule = {beta: jax.jit(relaxed.top_match(beta, 0.7).apply) for beta in (2, 4)}
    lengths = []
    for _ in range(60):
        logits = draw.normal(size=(4, 6))
        tokens = draw.integers(0, 6, 3)
        draft = Draft(jnp.asarray(tokens), jnp.arange(-1, 2))
        for beta, apply in rule.items():
            top = np.argsort(-logits, 1)[:, :beta].copy()
            stop, after = apply(
                draft, Prediction(logits=jnp.asarray(logits), top_ids=jnp.asarray(top))
            )
            kept = 0
            for token, law in zip(tokens, logits):
                ranked = sorted(range(6), key=lambda i: -law[i])[:beta]
                if token not in ranked or law.max() - law[token] > 0.7:
                    break
                kept += 1
            assert int(stop.argmax()) == kept and float(stop.sum()) == 1
            assert int(after[kept].argmax()) == logits[kept].argmax()
            lengths.append(kept)
    assert {0, 1, 2} <= set(lengths)


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"use drafters\.causal for a causal"):
        methods.spec_dec(BOTH[0], BOTH[0], max_new_tokens=4)
    with pytest.raises(ValueError, match="row_len=5 must be longer than block_length"):
        glancing.start(dataclasses.replace(config_of(), row_len=5), None, None)
    short = dataclasses.replace(config_of(), row_len=10, short_len=5)
    with pytest.raises(ValueError, match="short_len=5 must be longer than block"):
        glancing.start(short, None, None)


def test_a_run_learns_to_draft(tmp_path):
    """A trained drafter's drafts are accepted where an untrained one's are not."""
    sizes = {"width": 32, "mlp_width": 64}
    target = dataclasses.replace(MODEL, **sizes)
    canvas = dataclasses.replace(CANVAS, num_layers=2, sliding=(), **sizes)
    fast = {"learning_rate": 1e-2, "batch_size": 16, "row_len": 24}
    made = {
        name: train(
            dataclasses.replace(
                RUN, model=model, objective=name, steps=steps, eval_every=steps,
                checkpoint_every=steps, options=options, **fast,
            ),
            tmp_path / name, **quiet(),
        )
        for name, model, steps, options in (
            ("autoregressive", target, 80, None),
            ("glancing", canvas, 150, {"block_length": 4}),
        )
    }  # fmt: skip
    text = packing.stream([b"def f(x):\n    return x + 1\n"])[:6].tolist()
    prompt = prompts.from_rows([text], max_new_tokens=20)
    models = transformer.make_model(target), transformer.make_model(canvas)
    go = functools.partial(
        decode.run, methods.spec_dec, models, prompt=prompt, key=jax.random.key(0),
        max_new_tokens=20, num_draft=4,
    )  # fmt: skip
    drafters = transformer.init(canvas, jax.random.key(0)), made["glancing"].params
    calls = []
    for drafter in drafters:
        _, stats = go(
            params={"model": made["autoregressive"].params, "drafter": drafter}
        )
        calls.append(int(stats.num_calls[0]))
    assert made["glancing"].record["validation"]["drafted_right"] > 1
    assert calls[1] < 0.7 * calls[0]
