"""LUD: units at masks, of which a threshold says how many are taken."""

import jax
import numpy as np
import pytest
from test_probes import (
    BATCH,
    FROZEN,
    MODEL,
    PLACES,
    PROMPT,
    SMALL,
    TARGET,
    TOKENS,
    laws_behind,
    laws_of_masks,
)

from pdecode import methods
from pdecode.decode import run
from pdecode.models import transformer
from pdecode.train import TrainConfig
from pdecode.train.objectives import lud

OTHER = transformer.init(SMALL, jax.random.key(9))  # what is trained
RUN = TrainConfig(
    name="x", model=SMALL, objective="lud", steps=1, warmup_steps=0, row_len=7,
    frozen={"target": "target"}, start_from="target",
    options={"num_masks": 3, "mask_weight": 0.5, "unit_threshold": 0.15},
)  # fmt: skip


def units_by_hand(text, threshold):
    """How many tokens behind each place's next one are in its unit."""
    sure = [
        stop > 0 and np.exp(laws_behind(text[:stop], 0)[0][text[stop]]) >= threshold
        for stop in range(len(text))
    ]
    found = []
    for place in range(len(text) - 1):
        stop = place + 2
        while stop < len(text) and sure[stop]:
            stop += 1
        found.append(stop - place - 2)
    return found


def test_units_are_runs_of_tokens_that_the_target_expects():
    lengths = [units_by_hand(text, 0.15) for text in TOKENS.tolist()]
    found = lud.in_unit(SMALL, TARGET, BATCH["tokens"], RUN.options)
    for row, every in enumerate(lengths):
        for place, length in enumerate(every):
            expected = [nth < length for nth in range(3) if place + 2 + nth < 7]
            assert found[row, place].tolist()[: len(expected)] == expected
    assert 0 < sum(map(sum, lengths)) < 20


def test_the_loss_is_that_of_masks_within_the_unit():
    value, aux = jax.jit(lud.loss(RUN))(OTHER, FROZEN, BATCH, None, 0)
    counted = np.zeros((2, 6, 4), bool)
    counted[..., 0] = True
    for row, text in enumerate(TOKENS.tolist()):
        for place in PLACES[row]:
            counted[row, place, 1 : 1 + units_by_hand(text, 0.15)[place]] = True
    np.testing.assert_array_equal(aux["scored"], counted)
    assert 12 < counted.sum() < 12 + 6 * 3
    weight = counted * np.array([1, 0.5, 0.5, 0.5])
    expected = (np.asarray(aux["nats"]) * weight).sum() / weight.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["weight"], weight.sum())


def test_the_model_learns_and_what_told_the_units_does_not():
    def of(own, frozen):
        return lud.loss(RUN)(own, frozen, BATCH, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OTHER, FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def decoded_by_hand(text, count, threshold):
    """(tokens, calls): next token, then what masks are sure of, again and again."""
    text, start, calls = list(text), len(text), 0
    while len(text) < start + count:
        laws, calls = laws_of_masks(text, 3), calls + 1
        text.append(int(np.argmax(laws[0])))
        for law in laws[1:]:
            token = int(np.argmax(law))
            if np.exp(law[token]) < threshold or token == text[-1]:
                break
            text.append(token)
    return text[start : start + count], calls


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_it_takes_what_masks_are_sure_of_and_verifies_nothing(threshold):
    """And the control: these are not the model's own tokens."""
    how = {"max_new_tokens": 9}
    key, greedy = jax.random.key(0), {"temperature": 0.0}
    found, stats = run(
        methods.lud, MODEL, TARGET, PROMPT, key, num_draft=3,
        knobs={"threshold": threshold, **greedy}, **how,
    )  # fmt: skip
    for row, prompt in enumerate(([1, 4, 0], [3], [2, 2, 5, 1, 0])):
        first = int(found.start[row])
        tokens, calls = decoded_by_hand(prompt, 9, threshold)
        assert found.tokens[row, first : first + 9].tolist() == tokens
        # What masks said last is taken by the call that stores it.
        assert 0 <= int(stats.num_calls[row]) - calls <= 1
    plain, _ = run(
        methods.autoregressive, MODEL, TARGET, PROMPT, key, knobs=greedy, **how
    )
    assert (np.asarray(plain.tokens) != np.asarray(found.tokens)).any()


def test_above_one_it_is_plain_decoding():
    how, key = {"max_new_tokens": 9}, jax.random.key(1)
    sure, stats = run(
        methods.lud, MODEL, TARGET, PROMPT, key, num_draft=3,
        knobs={"threshold": 1.5, "temperature": 0.0}, **how,
    )  # fmt: skip
    plain, _ = run(
        methods.autoregressive, MODEL, TARGET, PROMPT, key, knobs={"temperature": 0.0},
        **how,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, sure.tokens)
    assert (np.asarray(stats.num_calls) == 9).all()


def test_a_model_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="has no mask id"):
        methods.lud(MODEL._replace(mask_id=None), max_new_tokens=4)
