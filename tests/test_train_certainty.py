"""Certainty forcing and the filter of ready positions: losses, gradients, decodes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.objectives import CANVAS
from tiny import RUN, case, quiet, stored_model

from pdecode import decode, generation, methods, prompts
from pdecode.contracts import Filter
from pdecode.models import filters, transformer
from pdecode.train import active, train
from pdecode.train.objectives import block_filter, certainty

END, EOS, MASK = 61, 258, 259
BLOCKS = dataclasses.replace(CANVAS, attention="block_causal", block_len=4)
ROWS = np.array(
    [
        [257, 90, END, 97, 98, 99, 97, END, 99, EOS, EOS, EOS, EOS, EOS],
        [257, END, 98, 98, 97, 97, 99, 99, 98, 98, 97, 97, EOS, EOS],
    ],
    np.int32,
)
MODELS = pytest.mark.parametrize("model", [CANVAS, BLOCKS], ids=["canvas", "blocks"])


def config_of(objective, model, **options):
    frozen = {"target": "x"} if objective == "block_filter" else {}
    return dataclasses.replace(
        RUN, objective=objective, model=model, frozen=frozen,
        options={"block_length": 4, "prompt_end": END, **options},
    )  # fmt: skip


def block_of(row, place, model):
    """The block of a place by counting; -1: of the prompt."""
    begin = list(row).index(END) + 1
    if place < begin:
        return -1
    return place // 4 if model is BLOCKS else (place - begin) // 4


@MODELS
def test_blocks_are_those_that_are_decoded(model):
    """Every block that holds more than filling is drawn, and no other."""
    rows = jnp.asarray(np.repeat(ROWS, 256, 0))
    noise = certainty.noise(config_of("certainty", model))
    made = jax.tree.map(np.asarray, noise({"tokens": rows}, jax.random.key(0)))
    for number, row in enumerate(ROWS):
        here = made["here"][256 * number : 256 * (number + 1)]
        later = made["later"][256 * number : 256 * (number + 1)]
        of = np.array([block_of(row, place, model) for place in range(len(row))])
        first_eos = list(row).index(EOS)
        wanted = {of[i] for i in range(first_eos + 1) if of[i] >= 0}
        found = {int(of[mask.argmax()]) for mask in here}
        assert found == wanted
        for mask, behind in zip(here, later):
            block = of[mask.argmax()]
            np.testing.assert_array_equal(mask, of == block)
            np.testing.assert_array_equal(behind, of > block)


def log_laws(model, params, row, masked):
    """Log-laws [L, V] of one row, the mask being no answer, by a decoder's own call."""
    seen = jnp.asarray(np.where(masked, MASK, row)[None])
    logits = np.asarray(_logits(model, params, seen))
    logits = np.delete(logits.astype(np.float64), MASK, axis=1)
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, seen):
    hidden = transformer.forward(model, params, seen).hidden[0]
    return hidden @ transformer.make_model(model).head(params).weight.T


def slow_certainty(model, params, batch, beta, sharpness):
    """The mean over rows of what the paper says of each row's two copies."""
    total = 0.0
    for row, here, later, drawn in zip(
        *(np.asarray(batch[k]) for k in ("tokens", "here", "later", "masked"))
    ):
        for chosen in (here & drawn, here & ~drawn):
            log_p = log_laws(model, params, row, chosen | later)
            places = [i for i in range(len(row)) if chosen[i]]
            if not places:
                continue
            total += -np.mean([log_p[i, row[i]] for i in places])
            right = [i for i in places if log_p[i].argmax() == row[i]]
            entropies = []
            for i in right:
                sharp = np.exp((log_p[i] - log_p[i].max()) / sharpness)
                sharp /= sharp.sum()
                entropies.append(-(sharp * np.log(sharp)).sum())
            total += beta * (np.mean(entropies) if right else 0.0)
    return total / len(batch["tokens"])


def agreeable(model, params, rows):
    """Rows whose masked places are often what the model says anyway."""
    rows = np.array(rows)
    for row in rows:
        of = np.array([block_of(row, place, model) for place in range(len(row))])
        for number in sorted(set(of) - {-1}):
            said = log_laws(model, params, row, of >= number).argmax(1)
            row[of == number] = np.where(np.arange(len(row)) % 4 < 3, said, row)[
                of == number
            ]
    return rows


@MODELS
def test_the_loss_is_the_papers_by_hand(model):
    params = transformer.init(model, jax.random.key(0))
    rows = agreeable(model, params, ROWS)
    parts = []
    for number, beta in ((0, 2.0), (1, 0.0), (2, 1.0)):
        config = config_of("certainty", model, beta=beta, sharpness=0.7)
        batch = jax.jit(certainty.noise(config))(
            {"tokens": jnp.asarray(rows)}, jax.random.key(number)
        )
        found, aux = jax.jit(certainty.loss(config))(params, {}, batch, None, 0)
        slow = slow_certainty(model, params, batch, beta, 0.7)
        np.testing.assert_allclose(found, slow, rtol=1e-5)
        # The copies mask each place of the block once.
        scored = np.asarray(aux["scored"])
        np.testing.assert_array_equal(scored.sum(1), np.asarray(batch["here"]))
        parts.append(slow - slow_certainty(model, params, batch, beta + 1, 0.7))
    assert min(parts) < -1e-3  # some entropies were there


def test_only_what_is_right_is_made_certain():
    """A label at a place that is wrong anyway does not touch the entropy's part."""
    params = transformer.init(CANVAS, jax.random.key(0))
    rows = jnp.asarray(agreeable(CANVAS, params, ROWS)[:1])
    masked = jnp.arange(rows.shape[1])[None] >= 3
    nats, spread, right = certainty.laws(CANVAS, params, rows, masked, 0.5)
    wrong = int(np.flatnonzero(np.asarray(masked & ~right)[0])[0])
    assert np.asarray(masked & right).any()
    other = rows.at[0, wrong].set((int(rows[0, wrong]) + 1) % 50)
    again = certainty.laws(CANVAS, params, other, masked, 0.5)
    np.testing.assert_array_equal(right, again[2])
    np.testing.assert_array_equal(spread, again[1])
    assert (np.asarray(nats) != np.asarray(again[0])).sum() == 1
    # A law that is certain gives the entropy no slope.
    sure = jnp.zeros(5).at[2].set(60.0)
    slope = jax.grad(lambda z: certainty.entropy(jax.nn.log_softmax(z)))(sure)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_certainty_of_blocks_of_another_length_is_refused():
    config = config_of("certainty", BLOCKS, block_length=8)
    with pytest.raises(ValueError, match=r"block_length=8, .*model.block_len=4"):
        certainty.start(config, jax.random.key(0), None)
    with pytest.raises(ValueError, match="sharpness=0 must be at least"):
        certainty.Options(sharpness=0)


# The filter.


def slow_rerun(model, params, row, number, of):
    """[(confidences, labels)] of the greedy decode of a block, by the card."""
    places = [i for i in range(len(row)) if of[i] == number]
    first = places[0] if model is CANVAS else 4 * number
    masked = of == number
    found = []
    while masked.any():
        seen = jnp.asarray(np.where(masked | (of > number), MASK, row)[None])
        p = np.asarray(jax.nn.softmax(_logits(model, params, seen)))
        confidence, labels = np.ones(4), np.zeros(4, bool)
        filled = masked.copy()
        for i in places:
            said = np.where(np.arange(p.shape[1]) == MASK, -1, p[i]).argmax()
            confidence[i - first] = p[i, said]
            labels[i - first] = said == row[i]
            filled[i] &= said != row[i]
        found.append((confidence, labels))
        if (filled == masked).all():
            break
        masked = filled
    return found, [i - first for i in places]


@MODELS
def test_the_rerun_is_the_greedy_decode_by_hand(model):
    params = transformer.init(model, jax.random.key(0))
    rows = agreeable(model, params, ROWS)
    config = config_of("block_filter", model)
    filter_params = filters.init(4, jax.random.key(1))
    many = 0
    for seed in range(3):
        batch = jax.jit(block_filter.noise(config))(
            {"tokens": jnp.asarray(rows)}, jax.random.key(seed)
        )
        found = jax.tree.map(np.asarray, block_filter.rerun(model, params, batch, 4))
        total, count = 0.0, 0
        for b, row in enumerate(rows):
            of = np.array([block_of(row, i, model) for i in range(len(row))])
            number = of[np.asarray(batch["here"])[b].argmax()]
            slow, places = slow_rerun(model, params, row, number, of)
            many = max(many, len(slow))
            assert found.counted[b].any(1).sum() == len(slow)
            for step, (confidence, labels) in enumerate(slow):
                np.testing.assert_allclose(
                    found.confidence[b, step], confidence, rtol=1e-5
                )
                np.testing.assert_array_equal(found.is_right[b, step], labels)
                said = filters.make_filter(4).apply(
                    filter_params, jnp.asarray(confidence, jnp.float32)
                )
                for place in places:
                    share = 1 / (1 + np.exp(-float(said[place])))
                    total -= np.log(share if labels[place] else 1 - share)
                    count += 1
        frozen = {"target": params}
        value, _ = jax.jit(block_filter.loss(config))(
            filter_params, frozen, batch, None, 0
        )
        np.testing.assert_allclose(value, total / count, rtol=1e-5)
    assert many > 1  # or nothing of a second step was seen


def test_a_row_that_the_model_says_anyway_takes_one_call():
    """A model that copies: everything is right at once, and labels are ones."""
    params = transformer.init(CANVAS, jax.random.key(0))
    row = ROWS[:1].copy()
    said = log_laws(CANVAS, params, row[0], np.arange(14) >= 3).argmax(1)
    row[0, 3:] = said[3:]
    here = (np.arange(14) >= 3)[None]
    batch = {
        "tokens": jnp.asarray(row), "here": jnp.asarray(here),
        "later": jnp.zeros((1, 14), bool), "begin": jnp.asarray([[3]]),
    }  # fmt: skip
    found = block_filter.rerun(CANVAS, params, batch, 11)
    assert np.asarray(found.counted[0]).any(1).sum() == 1
    assert np.asarray(found.is_right[0, 0]).all()


def test_training_sees_the_confidences_of_the_decoder():
    """Of a first step: what a filter is given while it decodes, out of a callback."""
    params = transformer.init(CANVAS, jax.random.key(0))
    seen = []

    def recorded(own, confidence):
        jax.debug.callback(lambda values: seen.append(np.asarray(values)), confidence)
        return confidence - own

    prompt = prompts.from_rows([ROWS[0, :3]], max_new_tokens=11)
    decode.run(
        methods.learn2pd, (CANVAS_MODEL, Filter(4, recorded)),
        {"model": params, "filter": jnp.float32(0)}, prompt, jax.random.key(0),
        max_new_tokens=11, predict_eot=False, max_steps=1,
    )  # fmt: skip
    jax.effects_barrier()
    place = jnp.arange(14)[None]
    batch = {
        "tokens": jnp.asarray(ROWS[:1]), "begin": jnp.asarray([[3]]),
        "here": (place >= 3) & (place < 7), "later": place >= 7,
    }  # fmt: skip
    found = block_filter.rerun(CANVAS, params, batch, 4)
    np.testing.assert_allclose(seen[0].ravel(), found.confidence[0, 0], rtol=1e-5)
    # The law without the mask is another.
    log_p = log_laws(CANVAS, params, ROWS[0], np.arange(14) >= 3)
    assert not np.allclose(np.exp(log_p[3:7].max(1)), seen[0].ravel(), rtol=1e-5)


CANVAS_MODEL = transformer.make_model(CANVAS)


def test_gradients_reach_what_the_papers_train():
    target = transformer.init(CANVAS, jax.random.key(0))
    rows = {"tokens": jnp.asarray(ROWS)}
    config = config_of("certainty", CANVAS)
    batch = certainty.noise(config)(rows, jax.random.key(0))
    slope = jax.jit(
        jax.grad(lambda p: certainty.loss(config)(p, {}, batch, None, 0)[0])
    )(target)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))
    config = config_of("block_filter", CANVAS)
    params = block_filter.start(config, jax.random.key(1), None)
    batch = block_filter.noise(config)(rows, jax.random.key(0))

    def of(params, target):
        return block_filter.loss(config)(params, {"target": target}, batch, None, 0)[0]

    own = jax.jit(jax.grad(of))(params, target)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))


def test_a_filters_folder_decodes_with_its_model_and_no_other(tmp_path):
    config = case("block_filter", tmp_path, steps=2, warmup_steps=1, eval_every=2)
    record = train(config, tmp_path / "filter", **quiet()).record
    assert record["validation"]["greedy_calls_per_block"] >= 1
    how = {"method": "learn2pd", "max_new_tokens": 6}
    made = generation.generate(
        [[97, 98]], model=config.frozen["target"], drafter=str(tmp_path / "filter"),
        **how,
    )  # fmt: skip
    assert made.lengths[0] <= 6
    other = stored_model(tmp_path / "other", CANVAS, seed=5)
    for model, drafter, message in (
        (
            other,
            tmp_path / "filter",
            "filter was trained on .* but .*other has weights",
        ),
        (
            other,
            tmp_path / "target",
            "learn2pd takes a filter, but .*target is a model",
        ),
        (other, None, "learn2pd needs a filter trained for"),
        (tmp_path / "filter", None, "filter is a filter: give it as the drafter"),
    ):
        with pytest.raises(ValueError, match=message):
            generation.prepare(
                [[97, 98]], model=str(model),
                drafter=None if drafter is None else str(drafter), **how,
            )  # fmt: skip


def test_numbers_by_hand():
    answer = jnp.asarray([[False, True, True, True, True, True]])
    for length, is_absolute, wanted in (
        (2, False, [-1, 0, 0, 1, 1, 2]),
        (2, True, [-1, 0, 1, 1, 2, 2]),
        (None, False, [-1, 0, 0, 0, 0, 0]),
    ):
        found = active.numbers(answer, length, is_absolute)
        assert found.tolist() == [wanted]
    for tokens in itertools.product([5, EOS], repeat=3):
        row = jnp.asarray([[EOS, 5, END, *tokens]])
        told = active.behind_end(row, jnp.asarray([[False] * 3 + [True] * 3]), (EOS,))
        first = tokens.index(EOS) if EOS in tokens else 3
        assert told[0, 3:].tolist() == [i > first for i in range(3)]
