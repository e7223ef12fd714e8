"""Verifiers on masked models: the same canvases in fewer calls, the same law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_revising import scripted, sure_of, tiny, traced

from pdecode import decode, methods, prompts
from pdecode.families import canvas_chain, canvas_tree
from pdecode.models import toy

VOCAB, LENGTH = 4, 12
TOY = toy.make_model(VOCAB, LENGTH, predicts="masked")
KEY = jax.random.key(0)
ROWS = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new_tokens=8)


def program(decoder):
    return jax.jit(
        lambda law, key: decode.decode(decoder, law, ROWS, jax.random.key(key))
    )


# FreeDave.


@pytest.mark.parametrize("settings", [{}, {"block_length": 4, "steps": 4}])
def test_freedave_is_the_static_decode_in_fewer_calls(settings):
    """200 random laws, half of them sampled; tokens, order and no call more."""
    eos = TOY._replace(eos_ids=(3,))
    fewer = 0
    for temperature in (0.0, 1.0):
        sizes = dict(max_new_tokens=8, temperature=temperature, **settings)
        plain = program(methods.llada(eos, **sizes))
        ahead = program(methods.freedave(eos, draft_steps=4, **sizes))
        for seed in range(100):
            law = toy.chain(seed, VOCAB, LENGTH, sharpness=3.0)
            out, stats = plain(law, seed)
            its_out, its = ahead(law, seed)
            np.testing.assert_array_equal(out.tokens, its_out.tokens)
            np.testing.assert_array_equal(out.committed, its_out.committed)
            np.testing.assert_array_equal(out.lengths, its_out.lengths)
            # Each token as probable as when the static decode came to it: the order.
            np.testing.assert_allclose(out.log_probs, its_out.log_probs, atol=1e-5)
            assert (its.num_calls <= stats.num_calls).all()
            fewer += int((stats.num_calls - its.num_calls).sum())
    assert fewer > 50


IN_BLOCKS = dict(attention="block_causal", block_len=4)


@pytest.mark.parametrize("count", [1, 2])
def test_freedave_of_a_block_model_is_its_static_decode(count):
    """Block by block on the model's own grid, for prompts on and off it."""
    model, params = tiny(**IN_BLOCKS)
    made = prompts.from_rows(
        [[0, 1], [2], [1, 3, 0, 2], [1] * 7], max_new_tokens=[8, 7, 8, 9]
    )
    sizes = dict(max_new_tokens=9)
    if count == 2:
        sizes = dict(max_new_tokens=8, steps=4)
        made = made._replace(max_new_tokens=jnp.minimum(made.max_new_tokens, 8))
    (out, stats), (its_out, its) = (
        jax.jit(lambda params, each=each: decode.decode(each, params, made, KEY))(
            params
        )
        for each in (
            methods.llada(model, **sizes),
            methods.freedave(model, draft_steps=4, **sizes),
        )
    )
    np.testing.assert_array_equal(out.lengths, its_out.lengths)
    for b, length in enumerate(out.start + out.lengths):
        np.testing.assert_array_equal(
            out.tokens[b, :length], its_out.tokens[b, :length]
        )
    np.testing.assert_allclose(
        out.log_probs * out.committed, its_out.log_probs * out.committed, atol=1e-4
    )
    assert (its.num_calls <= stats.num_calls).all()
    assert its.num_calls.sum() < stats.num_calls.sum()


GRID = toy.make_model(
    VOCAB, 24, predicts="masked", attention="block_causal", block_len=4, eos_ids=(3,)
)
# Prompts that end on the grid, before it and behind it; rows that end within a block.
ON_GRID = prompts.from_rows(
    [[0, 1, 2, 0], [2], [1, 0, 2, 2, 1], [0] * 7], max_new_tokens=[8, 11, 10, 9]
)


def on_grid(decoder, seeds):
    run_ = jax.jit(functools.partial(decode.decode, decoder))
    laws = [toy.chain(seed, VOCAB, 24, sharpness=3.0) for seed in seeds]
    return [
        jax.tree.map(np.asarray, run_(law, ON_GRID, jax.random.key(seed)))
        for law, seed in zip(laws, seeds)
    ]


def test_a_tree_of_canvases_is_the_static_decode(monkeypatch):
    """40 random laws, sampled: as side by side in tokens and calls, in fewer lanes."""
    sizes, seeds = dict(max_new_tokens=11, temperature=1.0), range(40)
    plain = on_grid(methods.llada(GRID, **sizes), seeds)
    tree = on_grid(methods.freedave(GRID, draft_steps=3, **sizes), seeds)
    monkeypatch.setattr(canvas_tree, "fits", lambda model, prompt: False)
    side = on_grid(methods.freedave(GRID, draft_steps=3, **sizes), seeds)
    fewer = 0
    for (out, stats), (its_out, its), (beside, theirs) in zip(plain, tree, side):
        jax.tree.map(np.testing.assert_array_equal, beside.tokens, its_out.tokens)
        np.testing.assert_array_equal(theirs.num_calls, its.num_calls)
        assert (its.num_query_tokens < theirs.num_query_tokens).all()
        np.testing.assert_array_equal(out.lengths, its_out.lengths)
        for b, length in enumerate(out.start + out.lengths):
            told = slice(out.start[b], length)
            assert out.tokens[b, told].tolist() == its_out.tokens[b, told].tolist()
            np.testing.assert_allclose(
                out.log_probs[b, told], its_out.log_probs[b, told], atol=1e-5
            )
        assert (its.num_calls <= stats.num_calls).all()
        fewer += int((stats.num_calls - its.num_calls).sum())
    assert fewer > 40


@pytest.mark.parametrize("wrong", ["lanes", "kept"])
def test_trees_that_mix_their_branches_are_caught(wrong, monkeypatch):
    """Negative controls: a full block never moved to its place; branches all seen."""
    sizes, seeds = dict(max_new_tokens=11, temperature=1.0), range(10)
    right = on_grid(methods.freedave(GRID, draft_steps=3, **sizes), seeds)
    true = getattr(canvas_tree, wrong)

    def lanes(*facts):
        positions, slots, visible, is_lane = true(*facts)
        among = visible.among | is_lane.reshape(len(is_lane), 1, -1)
        return positions, slots, visible._replace(among=among), is_lane

    instead = {"kept": lambda plan, state, drafts, last, cache: cache, "lanes": lanes}
    monkeypatch.setattr(canvas_tree, wrong, instead[wrong])
    mixed = on_grid(methods.freedave(GRID, draft_steps=3, **sizes), seeds)
    assert any((a.tokens != b.tokens).any() for (a, _), (b, _) in zip(right, mixed))


@pytest.mark.parametrize("draft_steps", [1, 3, 8])
def test_freedave_passes_through_the_canvases_of_the_static_decode(draft_steps):
    law = toy.chain(5, VOCAB, LENGTH, sharpness=3.0)
    _, stats, saved = traced(methods.llada(TOY, max_new_tokens=8), law, ROWS)
    method = methods.freedave(TOY, max_new_tokens=8, draft_steps=draft_steps)
    _, its, its_saved = traced(method, law, ROWS)
    for b in range(3):
        static = {0: np.zeros_like(saved[0, b])}
        static |= {int(each.sum()): each for each in saved[: stats.num_calls[b], b]}
        for each in its_saved[: its.num_calls[b], b]:
            np.testing.assert_array_equal(each, static[int(each.sum())])
    if draft_steps == 1:
        assert its.num_calls.tolist() == [8] * 3
    else:
        assert (its.num_calls < 8).all()


@pytest.mark.parametrize("length, draft_steps", [(8, 1), (8, 4), (9, 4), (3, 8)])
def test_freedave_at_best(length, draft_steps):
    model = scripted(lambda tokens, positions: sure_of(positions % 3))
    made = prompts.from_rows([[0], [1, 2]], max_new_tokens=length)
    method = methods.freedave(model, max_new_tokens=length, draft_steps=draft_steps)
    run_ = jax.jit(functools.partial(decode.decode, method))
    _, stats = run_({}, made, jax.random.key(0))
    assert stats.num_calls.tolist() == [1 - (1 - length) // draft_steps] * 2


def test_drafts_that_are_not_compared_are_caught(monkeypatch):
    """Negative control: every draft taken as it is."""
    sizes = dict(max_new_tokens=8)
    plain = program(methods.llada(TOY, **sizes))
    monkeypatch.setattr(
        canvas_chain, "accepted", lambda plan, drafts, guess, score, number: number
    )
    ahead = program(methods.freedave(TOY, draft_steps=4, **sizes))
    laws = [toy.chain(seed, VOCAB, LENGTH) for seed in range(10)]
    assert any(
        (plain(law, 0)[0].tokens != ahead(law, 0)[0].tokens).any() for law in laws
    )


def test_freedave_refuses_what_it_does_not_serve():
    with pytest.raises(ValueError, match="predicts='next'"):
        methods.freedave(toy.make_model(4, 12), max_new_tokens=8)
    with pytest.raises(ValueError, match="attends by blocks of 4"):
        methods.freedave(tiny(**IN_BLOCKS)[0], max_new_tokens=8, block_length=8)
    with pytest.raises(ValueError, match="unequally"):
        methods.freedave(TOY, max_new_tokens=8, steps=3)


# ASSD.


def test_assd_needs_at_most_a_call_a_token():
    """With holes; on laws of every sharpness, and with fewer calls somewhere."""
    made = prompts.from_rows(
        [[0, 1, 2, 0], [2, 2], [1, 3, 0, 2, 1]],
        max_new_tokens=[7, 6, 7],
        holes=[[False, True, True, False], [True, False], [False] * 5],
    )
    method = methods.assd(TOY, max_new_tokens=7, num_draft=4)
    run_ = jax.jit(functools.partial(decode.decode, method))
    total = 0
    for seed in range(60):
        law = toy.chain(seed, VOCAB, LENGTH, sharpness=1.0 + seed / 15)
        out, stats = run_(law, made, jax.random.key(seed))
        assert stats.num_committed.tolist() == [9, 7, 7]
        assert (stats.num_calls <= stats.num_committed).all()
        total += int(stats.num_calls.sum())
        tokens = np.asarray(out.tokens)
        assert tokens[0, 0] == 0 and tokens[0, 3] == 0 and tokens[1, 1] == 2
    assert total < 60 * 23


def test_assd_on_a_deep_model_is_its_raster_order():
    """Keys are those of one position a call: greedy tokens and their probabilities."""
    model, params = tiny()
    made = prompts.from_rows([[0, 1], [2], [1, 3, 0, 2]], max_new_tokens=8)
    results = [
        jax.jit(functools.partial(decode.decode, method))(
            params, made, jax.random.key(0)
        )
        for method in (
            methods.any_order(model, max_new_tokens=8, order="raster", temperature=0.0),
            methods.assd(model, max_new_tokens=8, num_draft=3, temperature=0.0),
        )
    ]
    (one, stats), (other, its) = results
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
    assert (its.num_calls <= stats.num_calls).all()
