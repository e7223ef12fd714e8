"""Trees of cells grown depth by depth."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_revising import scripted, sure_of, traced

from pdecode import methods, prompts
from pdecode.contracts import View
from pdecode.decode import decode, run
from pdecode.models import toy
from pdecode.rules import growth
from pdecode.sampling import BANNED

EMPTY, SPLIT, PLAIN, INK = range(4)


def trees():
    """All trees of a root, two nodes and four: 26 strings of 7 nodes."""
    leaf = [(PLAIN, EMPTY, EMPTY)]
    grown = [(SPLIT, *pair) for pair in itertools.product((PLAIN, INK), repeat=2)]
    found = [(PLAIN, *[EMPTY] * 6)]
    for one, other in itertools.product(leaf + grown, repeat=2):
        found.append((SPLIT, one[0], other[0], *one[1:], *other[1:]))
    return np.array(found)


STRINGS = trees()
PROBS = np.random.default_rng(3).dirichlet(np.ones(len(STRINGS)) * 0.7)
LAW = toy.table(STRINGS, PROBS)
MODEL = toy.make_model(4, 7, predicts="masked")
SIZES = dict(max_new_tokens=7, branching=2, fade=0.0, resample=0.0)


def sampled(decoder, rows):
    made = prompts.from_rows([[]] * rows, max_new_tokens=7, pad_to=0)
    run_ = jax.jit(functools.partial(decode, decoder))
    return jax.tree.map(np.asarray, run_(LAW, made, jax.random.key(0)))


def distance(tokens):
    """Total variation from the law; strings that are none of its own count in full."""
    found = [np.flatnonzero((STRINGS == row).all(1)) for row in tokens]
    count = np.bincount([f[0] for f in found if len(f)], minlength=len(STRINGS))
    return np.maximum(PROBS - count / len(tokens), 0).sum()


def test_numbers_of_nodes_and_their_parents():
    made = growth.tree(14, 3, 2, SPLIT, EMPTY)
    assert made.sizes == (2, 4, 8)
    assert made.parent.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    with pytest.raises(ValueError, match="a multiple of 7 nodes, but there are 12"):
        methods.octgpt(MODEL, max_new_tokens=12, steps=(1, 1, 1), branching=2)
    with pytest.raises(ValueError, match="must differ"):
        growth.tree(7, 3, 2, 1, 1)


def test_node_by_node_it_is_the_models_law():
    """In random order, one node a step; with a step a depth it is another law."""
    rows = 5_000
    slow = methods.octgpt(MODEL, steps=(1, 40, 40), **SIZES)
    out, stats = sampled(slow, rows)
    assert distance(out.tokens) < 3 * 0.5 * np.sqrt(2 / np.pi * 26 / rows)
    # A root without children makes a call a depth; all nodes make one each.
    assert stats.num_calls.min() == 3 and stats.num_calls.max() == 7
    fast = methods.octgpt(MODEL, steps=(1, 1, 1), **SIZES)
    out, stats = sampled(fast, rows)
    assert (stats.num_calls == 3).all() and distance(out.tokens) > 0.05


def test_what_is_under_no_split_is_empty_at_every_step():
    """Whatever the model holds likely; and as many are open as a loop says."""
    law, model = toy.chain(4, 4, 22), toy.make_model(4, 22, predicts="masked")
    made = prompts.from_rows([[0]] * 8, max_new_tokens=21)
    decoder = methods.octgpt(model, max_new_tokens=21, steps=(1, 3, 8), branching=4)
    out, stats, committed = traced(decoder, law, made)
    parent = growth.tree(21, 3, 4, SPLIT, EMPTY).parent
    tokens = np.asarray(out.tokens)[:, 1:]
    under = (parent < 0) | (tokens[:, parent] == SPLIT)
    assert (tokens[~under] == EMPTY).all() and not under.all()
    assert (tokens[under] != EMPTY).any()
    for b in range(8):
        calls = int(stats.num_calls[b])
        filled = committed[:calls, b, 1:]
        late = filled[:, :5].all(1)  # the last depth is begun by the call after that
        left = [int((~now[5:] & under[b, 5:]).sum()) for now in filled[late][1:]]
        total = now = int(under[b, 5:].sum())
        expected = []
        for i in range(len(left)):
            shared = int(total * np.cos(np.pi * (i + 1) / 16))
            now = max(min(now - 1, shared), min(now - 1, 1), 0)
            expected.append(0 if i == 7 else now)
        assert left == expected


def test_a_row_does_not_see_how_long_its_neighbours_are():
    """Lanes behind its end are there, in the last depth, and count for nothing."""
    law, model = toy.chain(4, 4, 30), toy.make_model(4, 30, predicts="masked")
    decoder = methods.octgpt(
        model,
        max_new_tokens=21,
        steps=(1, 3, 8),
        branching=4,
        resample=1.0,
        resample_from=0.0,
    )
    rows = [[a, b] for a in range(4) for b in range(4)]
    both = prompts.from_rows([*rows, [1, 2, 3, 0, 1, 2, 3]], max_new_tokens=21)
    short = prompts.from_rows(rows, max_new_tokens=21)
    made, alone = traced(decoder, law, both)[0], traced(decoder, law, short)[0]
    np.testing.assert_array_equal(made.tokens[:-1, :23], alone.tokens[:, :23])


@pytest.mark.parametrize("again", [0.0, 0.5, 1.0])
def test_a_part_of_what_is_no_longer_best_is_drawn_again(again):
    """The model wants splits while more than 18 of 21 nodes are open, then no more."""
    model = scripted(
        lambda tokens, positions: sure_of(
            jnp.where((tokens == 4).sum(1, keepdims=True) > 18, SPLIT, PLAIN)
            + 0 * positions
        )
    )
    made = prompts.from_rows([[0]], max_new_tokens=21)
    out, stats = run(
        methods.octgpt, model, {}, made, jax.random.key(0), max_new_tokens=21,
        steps=(1, 3, 2), branching=4,
        knobs={"resample": again, "resample_from": 0.3, "temperature": 0.0},
    )  # fmt: skip
    nodes = np.asarray(out.tokens)[0, 2:6].tolist()
    # A step each while 20 and 19 are open; the third sees 18, and doubts both.
    assert nodes.count(SPLIT) == 2 - int(2 * again)
    assert stats.num_revoked[0] == int(2 * again)
    assert (np.asarray(out.tokens)[0, 6:] == EMPTY).sum() == 16 - 4 * nodes.count(SPLIT)


def test_a_depth_gets_colder_as_a_cosine_is_passed():
    made = growth.tree(7, 3, 2, SPLIT, EMPTY)
    lens = growth.lens(made, 0.8)
    logits = jnp.asarray([0.3, BANNED, -1.0, 2.0])
    tokens = jnp.asarray([9, SPLIT, SPLIT, PLAIN, INK, 9, 9, 9])
    for known, open_ in (([5], 1 / 2), ([], 1.0)):
        seen = np.isin(np.arange(8), [1, 2, 3, *known])
        view = View(tokens, jnp.asarray(seen), jnp.int32(5), jnp.int32(1))
        got, _ = lens.apply(None, view._replace(position=jnp.int32(4)), logits, ())
        warmth = 1 - 0.8 * np.arccos(open_) * 2 / np.pi
        np.testing.assert_allclose(
            np.asarray(got)[[0, 2, 3]], np.array([0.3, -1.0, 2.0]) / warmth, rtol=1e-6
        )
        assert got[1] == BANNED
        # Under the plain node there is nothing.
        got, _ = lens.apply(None, view._replace(position=jnp.int32(7)), logits, ())
        assert got[0] == 0 and (got[1:] <= np.float32(BANNED)).all()
