"""Drafters without a model: a slow Python search tells every draft they make.

A lossless method that drafts nothing keeps every other test green.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import prompts
from pdecode.contracts import Sampling
from pdecode.decode import decode_state, finish, with_trace
from pdecode.drafters import ngram, preferring, recycling
from pdecode.families import speculative
from pdecode.models import toy

VOCAB, LENGTH, NEW = 4, 40, 24
CAUSAL = toy.make_model(VOCAB, LENGTH)
ROWS = [[0, 1, 2, 0, 1], [2, 3, 2, 3, 2, 1], [1], [3, 3, 0, 3, 3, 0, 1, 3]]
WIDTH = 8


def homogeneous(seed, sharpness=2.5):
    """A Markov law with one transition matrix everywhere, so that texts repeat."""
    scores = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB)) * sharpness
    step = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    moves = np.ones((LENGTH + 1, LENGTH + 1, VOCAB, VOCAB))
    for first in range(LENGTH):
        for last in range(first, LENGTH):
            moves[first, last] = np.linalg.matrix_power(step, last - first + 1)
    return toy.Chain(jnp.asarray(moves, jnp.float32))


LAW = homogeneous(0)


class Turn(NamedTuple):
    """One round of one row."""

    text: list[int]  # committed before it
    tokens: list[int]  # of the draft
    parents: list[int]
    num_accepted: int
    top: np.ndarray  # [1 + N, K] what the call predicted, if it was asked for


def recorded(drafter):
    """`drafter`, whose state also keeps its last round."""

    def init(params, keys, prompt, prefix, output):
        inner = drafter.init(params, keys, prompt, prefix, output)
        blank = jnp.zeros((len(ROWS), drafter.num_nodes), jnp.int32)
        num_top = max([0, *(int(w[4:]) for w in drafter.wants if w[:4] == "top:")])
        top = jnp.zeros((len(ROWS), 1 + drafter.num_nodes, num_top), jnp.int32)
        none = jnp.zeros(len(ROWS), jnp.int32)
        return inner, (blank, blank, none, none, top)

    def propose(params, keys, state, prefix):
        draft, inner = drafter.propose(params, keys, state[0], prefix)
        return draft, (inner, state[1])

    def observe(params, keys, state, round):
        inner = drafter.observe(params, keys, state[0], round)
        top = round.prediction.top_ids
        last = (
            round.draft.tokens,
            round.draft.parents,
            round.prefix.length,
            round.num_accepted,
            state[1][4] if top is None else top,
        )
        return inner, last

    return drafter._replace(init=init, propose=propose, observe=observe)


def turns_of(drafter, seed=0, temperature=1.0, law=LAW, params=None):
    """All turns of all rows, row by row."""
    params = {"model": law} if params is None else params
    decoder = with_trace(
        speculative.draft_verify(
            CAUSAL,
            recorded(drafter),
            max_new_tokens=NEW,
            sampling=Sampling(temperature),
        ),
        lambda state, info: (*state.drafter[1], info.num_calls),
        NEW,
    )
    prompt = prompts.from_rows(ROWS, max_new=NEW, pad_to=WIDTH)

    @functools.partial(jax.jit, static_argnums=0)
    def decode(decoder, params, key):
        state, _ = decode_state(decoder, params, prompt, key)
        return finish(decoder, state).tokens, state.saved

    text, saved = jax.tree.map(
        np.asarray, decode(decoder, params, jax.random.key(seed))
    )
    tokens, parents, lengths, accepted, top, calls = saved
    return [
        [
            Turn(
                text[b, : lengths[t, b]].tolist(),
                tokens[t, b].tolist(),
                parents[t, b].tolist(),
                int(accepted[t, b]),
                top[t, b],
            )
            for t in range(NEW)
            if calls[t, b]
        ]
        for b in range(len(ROWS))
    ]


def assert_drafts(rows, search):
    """Every draft is what `search(text)` gives, and some are accepted."""
    for row in rows:
        for turn in row:
            expected = search(turn.text)
            expected += [-1] * (len(turn.tokens) - len(expected))
            assert turn.tokens == expected, (turn.text, turn.tokens, expected)
    assert sum(turn.num_accepted for row in rows for turn in row) > 10


def look_up(text, num_draft, max_ngram, is_whole):
    """The leftmost earlier copy of the longest suffix, by trying all of them."""
    for size in range(min(max_ngram, len(text) - 1), 0, -1):
        for end in range(size, len(text)):
            room = len(text) - end >= (num_draft if is_whole else 1)
            if text[end - size : end] == text[-size:] and room:
                return text[end : end + num_draft]
    return []


@pytest.mark.parametrize("is_whole", [False, True])
def test_prompt_lookup_finds_what_a_search_finds(is_whole):
    rows = turns_of(ngram.prompt_lookup(4, 3, is_whole=is_whole))
    assert_drafts(rows, lambda text: look_up(text, 4, 3, is_whole))
    with pytest.raises(AssertionError):  # the two continuations differ
        assert_drafts(rows, lambda text: look_up(text, 4, 3, not is_whole))


def test_suffix_match_finds_the_longest_copy():
    rows = turns_of(ngram.suffix_match(5))
    longest = NEW + WIDTH
    assert_drafts(rows, lambda text: look_up(text, 5, longest, False))
    with pytest.raises(AssertionError):  # suffixes of two tokens at most
        assert_drafts(rows, lambda text: look_up(text, 5, 2, False))


def fill(tree, table, root):
    tokens = []
    for parent, rank in zip(tree.parents, tree.ranks):
        above = root if parent < 0 else tokens[parent]
        tokens.append(table[above][rank] if above in table else -1)
    return tokens


def best_two(law, text):
    """The target's best successors of every token: those that a prefill predicts."""
    step = np.asarray(law.moves[1, 1])
    return {token: np.argsort(-step[token])[:2].tolist() for token in set(text)}


def test_token_recycling_keeps_the_last_prediction_of_every_token():
    tree = recycling.template((2, 3, 1), 2)
    rows = turns_of(recycling.recycling(CAUSAL, tree, 2))
    num_filled = 0
    for prompt, row in zip(ROWS, rows):
        table = best_two(LAW, prompt[:-1])
        for turn in row:
            assert turn.tokens == fill(tree, table, turn.text[-1])
            assert turn.parents == list(tree.parents)
            for token, top in zip([turn.text[-1], *turn.tokens], turn.top.tolist()):
                if token >= 0:
                    table[token] = top
            num_filled += sum(token >= 0 for token in turn.tokens)
    assert num_filled > 100
    assert sum(turn.num_accepted for row in rows for turn in row) > 30


def test_the_last_of_equal_tokens_is_written():
    table = jnp.zeros((1, 5, 1), jnp.int32)
    tokens = jnp.array([[3, 1, 3, -1, 1]])
    found = recycling.written(table, tokens, jnp.arange(1, 6)[None, :, None])
    assert found[0, :, 0].tolist() == [0, 5, 0, 3, 0]


def test_a_table_that_knows_the_chain_accepts_the_template_s_depth():
    """Greedy on a deterministic bigram law: the first ranks are always right."""
    tree = recycling.template((2, 3, 1), 2)
    for row in turns_of(recycling.recycling(CAUSAL, tree, 2), temperature=0.0):
        assert {turn.num_accepted for turn in row[4:-1]} == {3}


def test_template_has_its_widths_and_says_what_it_lacks():
    widths = (8, 21, 25, 15, 8, 3)
    tree = recycling.template(widths, 8)
    assert tuple(tree.depths.count(d) for d in range(1, 7)) == widths
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert len(set(zip(tree.parents, tree.ranks))) == 80
    with pytest.raises(ValueError, match="level 1 has 3 nodes"):
        recycling.template((3,), 2)
    with pytest.raises(ValueError, match="num_top=9 exceeds"):
        recycling.recycling(CAUSAL, recycling.template((2,), 2), 9)


def test_the_longer_copy_goes_before_the_tree():
    tree = recycling.template((2, 3, 1), 2)
    drafter = preferring.preferring(
        ngram.suffix_match(4),
        recycling.recycling(CAUSAL, tree, 2),
        lambda copied: copied.matched >= 3,
    )
    num_copied = 0
    rows = turns_of(drafter)
    for turn in (turn for row in rows for turn in row):
        sizes = range(1, len(turn.text))
        matched = max(
            (n for n in sizes if look_up(turn.text, 1, n, False) and any(
                turn.text[end - n : end] == turn.text[-n:]
                for end in range(n, len(turn.text))
            )),
            default=0,
        )  # fmt: skip
        is_chain = turn.parents[:4] == [-1, 0, 1, 2]
        assert is_chain == (matched >= 3), turn
        num_copied += is_chain
    assert 0 < num_copied < sum(map(len, rows))
