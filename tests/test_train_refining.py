"""ReDiff's objective: what is wrong on purpose, its loss, and a decode that revises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS
from tiny import RUN, quiet

from pdecode import decode, methods, prompts
from pdecode.models import transformer
from pdecode.train import losses, passes, train
from pdecode.train.objectives import refining

LENGTH, END = 18, 61
HOW = passes.of_decoding(CANVAS)
PARAMS = jax.tree.map(lambda p: 2.0 * p, transformer.init(CANVAS, jax.random.key(0)))
TOKENS = np.random.default_rng(0).integers(97, 100, (4, LENGTH)).astype(np.int32)
TOKENS[:, 3] = END


def config_of(**options):
    own = {"prompt_end": END, "replaced": 0.4, **options}
    return dataclasses.replace(
        RUN, model=CANVAS, objective="refining", row_len=LENGTH, options=own
    )


def noised(**options):
    batch = {"tokens": jnp.asarray(TOKENS)}
    return refining.noise(config_of(**options))(batch, jax.random.key(1))


@jax.jit
def _law(canvas):
    found = losses.logits_of(CANVAS, PARAMS, passes.hidden(HOW, PARAMS, canvas[None]))
    return jax.nn.log_softmax(found)[0]


def slow_loss(batch, replaced_weight, kept_weight):
    """A row at a time, a place at a time."""
    total = 0.0
    for row in range(4):
        tokens, masked, replaced, other = (
            np.asarray(batch[name][row])
            for name in ("tokens", "masked", "replaced", "other")
        )
        canvas = np.where(replaced, other, tokens)
        canvas[masked] = CANVAS.mask_id
        if batch["drafts"][row]:
            begun = np.where(masked, CANVAS.mask_id, tokens)
            canvas = np.where(masked, np.asarray(_law(begun)).argmax(1), tokens)
        law = np.asarray(_law(canvas), np.float64)
        for place in range(4, LENGTH):
            nats = -law[place, tokens[place]]
            if batch["drafts"][row]:
                wrong = masked[place] and canvas[place] != tokens[place]
                total += replaced_weight * nats * wrong
            elif masked[place]:
                total += nats * float(batch["weight"][row])
            else:
                total += nats * (replaced_weight if replaced[place] else kept_weight)
    return total / (4 * (LENGTH - 4))


@pytest.mark.parametrize("own_errors", [0.0, 0.5])
def test_the_loss_is_the_papers_by_hand(own_errors):
    own = {"own_errors": own_errors, "replaced_weight": 2.0, "kept_weight": 0.3}
    batch = noised(**own)
    assert set(np.asarray(batch["drafts"])) == (
        {True, False} if own_errors else {False}
    )
    value, aux = jax.jit(refining.loss(config_of(**own)))(PARAMS, {}, batch, None, 0)
    np.testing.assert_allclose(value, slow_loss(batch, 2.0, 0.3), rtol=1e-5)
    assert float(aux["weight"]) == 4 * (LENGTH - 4)
    # The controls: a term left out.
    for weights in ((0.0, 0.3), (2.0, 0.0)):
        assert abs(slow_loss(batch, *weights) / float(value) - 1) > 1e-3


def test_noise_leaves_the_prompt_and_puts_anything_but_the_mask():
    rows = jnp.asarray(np.repeat(TOKENS, 500, 0))
    batch = refining.noise(config_of())({"tokens": rows}, jax.random.key(0))
    masked, replaced = np.asarray(batch["masked"]), np.asarray(batch["replaced"])
    assert not masked[:, :4].any() and not replaced[:, :4].any()
    assert abs(replaced[:, 4:].mean() - 0.4) < 0.01
    # LLaDA's weight is one over the rate, which is uniform.
    rate = 1 / np.asarray(batch["weight"])
    np.testing.assert_allclose(np.sort(rate), np.linspace(0, 1, len(rate)), atol=0.01)
    assert np.corrcoef(rate, masked[:, 4:].mean(1))[0, 1] > 0.9
    other = np.asarray(batch["other"])
    assert CANVAS.mask_id not in other
    assert len(np.unique(other)) == CANVAS.vocab_size - 1


def test_gradients_reach_every_parameter_and_none_flows_through_a_guess():
    batch = noised(own_errors=1.0)
    loss = refining.loss(config_of(own_errors=1.0))
    slope = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None, 0)[0]))(PARAMS)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(slope))
    canvas, _, wrong = refining.shown(HOW, PARAMS, batch, True)
    assert wrong.sum() > 5

    def given(params):
        law = jax.nn.log_softmax(refining.laws(HOW, params, canvas))
        nats = -losses.of_tokens(law, batch["tokens"])
        return jnp.where(wrong, nats, 0.0).sum() / (4 * (LENGTH - 4))

    wanted = jax.jit(jax.grad(given))(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slope, wanted
    )


def test_a_run_learns_to_revise(tmp_path):
    """A model of masks alone makes a text worse by revising it, this one does not."""
    model = dataclasses.replace(
        CANVAS, width=32, mlp_width=64, num_layers=2, sliding=()
    )
    text = quiet()["streams"][1]
    whole = np.stack([text[i : i + 26] for i in range(1, 200, 13)])
    prompt = prompts.from_rows(whole[:, :6].tolist(), max_new_tokens=20)
    figures, errors = [], []
    for weight in (0.0, 1.0):  # without the weights it is masked diffusion
        weights = {"replaced_weight": weight, "kept_weight": weight}
        config = dataclasses.replace(
            RUN, model=model, objective="refining", steps=250, eval_every=250,
            checkpoint_every=250, learning_rate=1e-2, batch_size=16,
            options={"replaced": 0.15 * weight, **weights},
        )  # fmt: skip
        made = train(config, tmp_path / str(weight), **quiet())
        tuned = dataclasses.replace(config, options={"replaced": 0.15})
        rows = jnp.asarray(text[:512].reshape(16, 32), jnp.int32)
        batch = refining.noise(tuned)({"tokens": rows}, jax.random.key(0))
        every = jnp.ones(rows.shape, bool)
        hits = np.asarray(refining._hits(model, None, made.params, batch, every))
        figures.append(hits[:, 0] / hits[:, 1])
        for fraction in (0.0, 1.0):
            out, _ = decode.run(
                methods.refine, transformer.make_model(model), made.params, prompt,
                jax.random.key(0), max_new_tokens=20, steps=4,
                knobs={"revise_fraction": fraction},
            )  # fmt: skip
            errors.append((np.asarray(out.tokens)[:, 6:26] != whole[:, 6:]).mean())
    (put_before, kept_before), (put_right, kept_right) = figures
    assert put_right > put_before + 0.2, figures
    assert kept_right > 0.95 > kept_before
    assert errors[1] > errors[0] + 0.05  # revised by what never learned to
    assert errors[3] < errors[2] + 0.05 and errors[3] < errors[1] - 0.1
