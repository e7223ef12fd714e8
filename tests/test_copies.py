"""Copies: from the input, for the draft model, from two stores; by slow searches."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model_free import CAUSAL, DOCUMENTS, LAW, NEW, ROWS, follow, turns_of

from pdecode import methods, prompts, trees
from pdecode.contracts import Sampling
from pdecode.data import datastore
from pdecode.decode import decode
from pdecode.drafters import cascaded, causal, ngram, retrieval
from pdecode.models import toy


def by_search(text, prompt_end, num_draft, max_ngram):
    """The prompt behind the one place where the output's shortest end stands."""
    source, output = text[:prompt_end], text[prompt_end:]
    if not output:
        return source[:num_draft]
    for size in range(1, max_ngram + 1):
        if size > len(output):
            return []
        suffix = output[len(output) - size :]
        ends = [
            end for end in range(size, len(source) + 1)
            if source[end - size : end] == suffix
        ]  # fmt: skip
        if len(ends) != 1:
            if not ends:
                return []
            continue
        return source[ends[0] :][:num_draft]
    return []


@pytest.mark.parametrize("max_ngram", [1, 3])
def test_the_place_in_the_input_is_that_of_a_search(max_ngram):
    find = jax.jit(lambda t, n, end: ngram.from_input(t, n, end, 3, max_ngram))
    draw = np.random.default_rng(0)
    drafted = 0
    for _ in range(400):
        length = int(draw.integers(1, 14))
        end = int(draw.integers(1, length + 1))
        text = draw.integers(0, draw.integers(2, 7), length).tolist()
        padded = jnp.asarray(text + [0] * (14 - length))
        got = find(padded, jnp.int32(length), jnp.int32(end)).tolist()
        expected = by_search(text, end, 3, max_ngram)
        assert got == expected + [-1] * (3 - len(expected)), (text, end)
        drafted += bool(expected)
    assert 100 < drafted < 400


def copier(edits, length, vocab):
    """A chain law that repeats a text but for `edits` {place: token}."""
    text = np.random.default_rng(0).permutation(vocab)[:length]
    wanted = text.copy()
    for place, token in edits.items():
        wanted[place] = token
    steps = np.full((2 * length, vocab, vocab), 1e-6)
    for place, token in enumerate([*text, *wanted]):
        steps[place, :, token] = 1
    return text, wanted, toy._chain(steps / steps.sum(-1, keepdims=True))


def test_calls_of_a_copy_with_edits():
    """One call, and one or two more an edit: behind it the place is found again."""
    length, vocab = 20, 24
    calls = []
    for edits in ({}, {7: 23}, {3: 22, 12: 23}):
        text, wanted, law = copier(edits, length, vocab)
        model = toy.make_model(vocab, 2 * length)
        prompt = prompts.from_rows([text.tolist()], max_new_tokens=length)
        decoder = methods.aggressive_decoding(
            model, max_new_tokens=length, num_draft=length
        )
        run = jax.jit(functools.partial(decode, decoder))
        out, stats = run(law, prompt, jax.random.key(0))
        assert out.tokens[0, length:].tolist() == wanted.tolist()
        calls.append(int(stats.num_calls[0]))
    assert calls[0] == 1 and calls[1] <= 3 and calls[2] <= 5, calls


NEAR = toy.mixed(LAW, toy.chain(3, 4, 40), 0.4)
PARAMS = {"model": LAW, "drafter": NEAR}


def drafts_of(drafter):
    return [
        [(turn.text, turn.tokens, turn.num_accepted) for turn in row]
        for row in turns_of(drafter, params=PARAMS)
    ]


def test_a_cascade_drafts_what_the_draft_model_does():
    """Token for token, round for round."""
    plain = causal.draft_model(CAUSAL, trees.chain(4), Sampling(1.0), draws="coupled")
    fast = cascaded.cascaded(CAUSAL, Sampling(1.0), 4, 3, 2)
    expected = drafts_of(plain)
    assert drafts_of(fast) == expected
    assert sum(turn[2] for row in expected for turn in row) > 20


def test_a_cascade_that_forgets_to_store_is_caught(monkeypatch):
    """Negative control: a call stores only behind the chain's end."""
    real = cascaded.SlotRun
    monkeypatch.setattr(cascaded, "SlotRun", lambda start: real(start + 1))
    plain = causal.draft_model(CAUSAL, trees.chain(4), Sampling(1.0), draws="coupled")
    fast = cascaded.cascaded(CAUSAL, Sampling(1.0), 4, 3, 2)
    assert drafts_of(fast) != drafts_of(plain)


def test_a_cascade_calls_its_draft_model_less_often():
    prompt = prompts.from_rows(ROWS, max_new_tokens=NEW)
    sizes = {"max_new_tokens": NEW, "num_draft": 6, "temperature": 0.0}
    counts = []
    for decoder in (
        methods.cascade(CAUSAL, CAUSAL, num_copied=4, **sizes),
        methods.speculative_sampling(CAUSAL, CAUSAL, acceptance="coupled", **sizes),
    ):
        run = jax.jit(functools.partial(decode, decoder))
        out, stats = run(PARAMS, prompt, jax.random.key(0))
        counts.append((out.tokens, stats.num_calls, int(stats.num_draft_calls.sum())))
    np.testing.assert_array_equal(counts[0][0], counts[1][0])
    np.testing.assert_array_equal(counts[0][1], counts[1][1])
    assert counts[0][2] < 0.7 * counts[1][2], counts


# Two stores.

OTHERS = [np.random.default_rng(9).integers(0, 4, size).tolist() for size in (50, 20)]


def counted(text, weights):
    """How much each continuation of a text counts, by two plain searches."""
    counts = collections.Counter()
    for documents, weight in zip((DOCUMENTS, OTHERS), weights):
        for each in follow(documents, text, 2, 4):
            for size in range(len(each)):
                counts[tuple(each[: size + 1])] += weight
    return counts


def stored_turns(weights, skipped):
    stores, texts = zip(*map(datastore.build, (DOCUMENTS, OTHERS)))
    params = {"model": LAW}
    for role, each in zip(("corpus", "other"), texts):
        params[role] = jax.tree.map(jnp.asarray, each)
    drafter = retrieval.merged(
        *stores, 6, weights=weights, skipped=skipped, num_matches=128, length=4
    )
    return [turn for row in turns_of(drafter, params=params) for turn in row]


def scores_of(turn, counts):
    """Of the drafted paths, and of the best there are; equal ones may change places."""
    paths = []
    for token, parent in zip(turn.tokens, turn.parents):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    paths = paths[: sum(token >= 0 for token in turn.tokens)]
    mine = sorted((counts[path] * 4 - len(path) for path in paths), reverse=True)
    every = sorted((c * 4 - len(p) for p, c in counts.items() if c), reverse=True)
    return mine, every[:6]


def test_two_stores_count_by_their_weights():
    turns = stored_turns((3, 1), ())
    num_drafted = num_other = 0
    for turn in turns:
        mine, best = scores_of(turn, counted(turn.text, (3, 1)))
        assert mine == best, turn
        num_drafted += len(mine)
        wrong, its = scores_of(turn, counted(turn.text, (1, 1)))
        num_other += wrong != its  # negative control: stores that count alike
    assert num_drafted > 100 and num_other > 3
    assert sum(turn.num_accepted for turn in turns) > 3


def test_nothing_is_searched_behind_what_is_skipped():
    every = {tuple(turn.text): turn for turn in stored_turns((3, 1), ())}
    num_silent = num_same = 0
    for turn in stored_turns((3, 1), (2,)):
        if turn.text[-1] == 2:
            assert set(turn.tokens) == {-1}
            num_silent += max(every.get(tuple(turn.text), turn).tokens) >= 0
        elif tuple(turn.text) in every:
            assert turn.tokens == every[tuple(turn.text)].tokens
            num_same += 1
    assert num_silent > 3 and num_same > 10


def test_a_match_that_one_store_cannot_have_is_refused():
    with pytest.raises(ValueError, match="min_match"):
        retrieval.merged(datastore.Store(16), datastore.Store(4), 5, min_match=8)
