"""Draft models of another vocabulary: what they read, write, and how likely it is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_exact
from test_model_free import turns_of

from pdecode import methods
from pdecode.contracts import Prediction, Prefix
from pdecode.drafters import ngram, spelled
from pdecode.models import toy
from pdecode.rules import accept

OWN = {"a": 0, "b": 1}
# The target's ids; "ba" is a prefix of no token but is one, "c" cannot be spelled.
WORDS = {"a": 0, "b": 1, "ab": 2, "aba": 3, "c": 4}
LETTERS = toy.make_model(2, 24)
LAW = toy.chain(4, 2, 24, sharpness=1.0)
PARAMS = spelled.tables(LAW, OWN, WORDS, 6)
TEXT_OF = {index: word for word, index in WORDS.items() if word != "c"}


def longest_first(text, words=WORDS):
    """Ids that a text is read as, by trying every token at each place."""
    found = []
    while text:
        fits = [word for word in words if text.startswith(word)]
        if not fits:
            return found
        found.append(words[max(fits, key=len)])
        text = text[len(max(fits, key=len)) :]
    return found


def test_own_text_and_back():
    rows = [[2, 0, 4, 3], [1], [3, 3, 3, 5]]
    tokens = jnp.asarray([row + [0] * (4 - len(row)) for row in rows])
    prefix = Prefix(tokens, jnp.array([4, 1, 4]), None, None)
    own, length = spelled.own_text(prefix, PARAMS["spelling"], 8)
    for b, row in enumerate(rows):
        text = "".join(TEXT_OF.get(token, "") for token in row)
        assert int(length[b]) == len(text)
        assert own[b, : len(text)].tolist() == [OWN[letter] for letter in text][:8]
    drafted = jnp.asarray(list(itertools.product((0, 1), repeat=5)))
    found = spelled.read_back(drafted, PARAMS["trie"], 3).tolist()
    for letters, tokens in zip(drafted.tolist(), found):
        text = "".join("ab"[each] for each in letters)
        expected = longest_first(text)
        assert tokens == expected + [-1] * (5 - len(expected))
    # What no token begins with ends the draft.
    few = spelled.tables(LAW, OWN, {"a": 0, "ab": 2}, 6)
    assert spelled.read_back(jnp.array([[0, 1, 1, 0]]), few["trie"], 2).tolist() == [
        [2, -1, -1, -1]
    ]


def test_words_are_spelled_by_the_longest():
    own = {"t": 0, "h": 1, "th": 2, "e": 3, "\u2581": 4}
    made = spelled.tables(None, own, {"\u0120the": 1, "xx": 2}, 3)
    assert made["spelling"].tolist() == [[-1] * 3, [4, 2, 3], [-1] * 3]
    with pytest.raises(ValueError, match="none of 1 tokens can be spelled with 2"):
        spelled.tables(None, OWN, {"c": 0}, 2)


def test_the_law_of_the_first_token_is_that_of_all_continuations():
    """By writing every continuation out, in float64; it sums to 1."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        trie = spelled.Trie(*map(jnp.asarray, PARAMS["trie"]))
        size = trie.token.shape[0]
        for _ in range(20):
            probs = draw.dirichlet((0.5, 0.5), size)
            law = np.asarray(spelled.token_law(jnp.asarray(probs)[None], trie, 6))[0]
            expected = np.zeros(6)
            for letters in itertools.product((0, 1), repeat=3):
                node, chance = 0, 1.0
                for each in letters:
                    # Off the trie the letters no longer matter.
                    inside = node >= 0
                    chance *= probs[node][each] if inside else 0.5
                    node = int(trie.child[node, each]) if inside else -1
                text = "".join("ab"[each] for each in letters)
                expected[longest_first(text)[0]] += chance
            np.testing.assert_allclose(law, expected, atol=1e-14)


def test_the_closed_form_of_two_letters():
    """psi(a) = q(a) q(a|a), psi(ab) = q(a) q(b|a), psi(b) = q(b)."""
    with jax.enable_x64(True):
        two = spelled.tables(LAW, OWN, {"a": 0, "b": 1, "ab": 2}, 3)
        trie = two["trie"]
        at_a = int(trie.child[0, 0])
        probs = np.full((trie.token.shape[0], 2), 0.5)
        probs[0], probs[at_a] = (0.7, 0.3), (0.6, 0.4)
        law = spelled.token_law(jnp.asarray(probs)[None], trie, 3)[0]
        np.testing.assert_allclose(law, [0.7 * 0.6, 0.3, 0.7 * 0.4], atol=1e-15)


def emitted(p, psi, told):
    """Law of the first token emitted where drafts are drawn from psi and told as q."""
    rule = accept.by_node(accept.rejection())
    law = np.zeros(len(p))
    for token in np.flatnonzero(psi):
        draft = ngram.chain(jnp.array([[token]]))
        draft = draft._replace(q=jnp.asarray(told)[None, None])
        draft = jax.tree.map(lambda leaf: leaf[0], draft)
        stop, residual = rule.apply(draft, Prediction(probs=jnp.stack([p, p])))
        law[token] += psi[token] * float(stop[1])
        law += psi[token] * float(stop[0]) * np.asarray(residual[0])
    return law


def test_rejection_by_that_law_is_lossless_by_enumeration():
    with jax.enable_x64(True):
        draw = np.random.default_rng(1)
        trie = spelled.Trie(*map(jnp.asarray, PARAMS["trie"]))
        worst = []
        for _ in range(10):
            probs = draw.dirichlet((0.5, 0.5), trie.token.shape[0])
            psi = np.asarray(spelled.token_law(jnp.asarray(probs)[None], trie, 6))[0]
            p = jnp.asarray(draw.dirichlet(np.ones(6)))
            variation = 0.5 * np.abs(emitted(p, psi, psi) - np.asarray(p)).sum()
            assert variation < 1e-12
            # Negative control: the chance of the letters, not of the token they make.
            reached = np.array([
                np.prod([probs[node][each] for node, each in path(trie, token)])
                if token in TEXT_OF else 0.0 for token in range(6)
            ])  # fmt: skip
            wrong = emitted(p, psi, reached)
            worst.append(0.5 * np.abs(wrong - np.asarray(p)).sum())
        assert max(worst) > 0.02, worst


def path(trie, token):
    """[(node, own id)] from the start to a token."""
    node, found = 0, []
    for letter in TEXT_OF[token]:
        found.append((node, OWN[letter]))
        node = int(trie.child[node, OWN[letter]])
    return found


TARGET = toy.chain(2, 4, 12, sharpness=1.5)
CAUSAL = toy.make_model(4, 12)


def greedy_letters(text, num):
    """What the letters' law thinks likeliest behind a text, letter by letter."""
    moves, ids = np.asarray(LAW.moves), [OWN[letter] for letter in text]
    for _ in range(num):
        here = len(ids)
        row = moves[here, here][ids[-1]] if here < 24 else np.ones(2)
        ids.append(int(np.argmax(row)))
    return "".join("ab"[each] for each in ids[len(text) :])


@pytest.mark.parametrize("is_stale", [False, True])
def test_drafts_are_the_letters_continuation_read_back(is_stale, monkeypatch):
    if is_stale:  # negative control: the text is taken to be as long as the target's
        real = spelled.own_text

        def shorter(prefix, spelling, size):
            return real(prefix, spelling, size)[0], prefix.length

        monkeypatch.setattr(spelled, "own_text", shorter)
    drafter = spelled.strings(LETTERS, 4, 2)
    params = {"model": TARGET, "drafter": PARAMS}
    wrong = num_accepted = 0
    for row in turns_of(drafter, params=params, model=CAUSAL, new=8):
        for turn in row:
            text = "".join(TEXT_OF[token] for token in turn.text)
            # Its buffer has two letters for each of the target's positions.
            expected = []
            if len(text) <= 20:
                expected = longest_first(greedy_letters(text, 4))
            wrong += turn.tokens != expected + [-1] * (4 - len(expected))
            num_accepted += turn.num_accepted
    assert (wrong > 0) == is_stale
    assert is_stale or num_accepted > 2


@pytest.mark.thorough
def test_slrs_is_lossless_in_law():
    letters = toy.make_model(2, 24)
    params = {
        "model": test_exact.JOINT,
        "drafter": spelled.tables(LAW, OWN, {"a": 0, "ab": 1}, 3),
    }
    decoder = methods.slrs(
        test_exact.CAUSAL, letters, max_new_tokens=test_exact.NEW, temperature=1.0
    )
    test_exact.assert_exact(decoder, params)


def test_a_text_that_is_too_long_drafts_nothing():
    drafter = spelled.strings(LETTERS, 3, 1)
    params = {"model": TARGET, "drafter": PARAMS}
    rows = turns_of(drafter, params=params, model=CAUSAL, new=8)
    for turn in (turn for row in rows for turn in row):
        size = sum(len(TEXT_OF[token]) for token in turn.text)
        assert (turn.tokens[0] >= 0) == (size <= 11), turn


def test_greedy_psi_is_the_greedy_draft():
    """At temperature 0 the law has one token: that of the likeliest letters."""
    trie = PARAMS["trie"]
    hot = jnp.asarray(np.eye(2)[np.random.default_rng(0).integers(0, 2, 5)])
    law = spelled.token_law(hot[None, : trie.token.shape[0]], trie, 6)
    assert sorted(np.unique(law).tolist()) == [0.0, 1.0]
