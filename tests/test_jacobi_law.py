"""Speculative Jacobi by exact enumeration of every call: the lemma, and what breaks it.

A state is what is committed and the guesses of the window, each with the law it was
drawn from, told by the context that law looks at. Nothing here is code of the package:
`test_exact` and `test_jacobi` tie the compiled loops to the same law.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pytest

VOCAB, LENGTH, WINDOW = 2, 4, 3
UNIFORM = np.full(VOCAB, 1 / VOCAB)


class Guess(NamedTuple):
    """A slot of the window."""

    token: int
    law: tuple  # ("context", tokens), ("point", token) or ("uniform",)
    level: int = 0  # above 0: noise, which the model reads as the token `read`
    read: int = -1

    @property
    def seen(self):
        return self.read if self.level else self.token


class Way(NamedTuple):
    """How guesses are begun, moved and accepted."""

    coupling: str = "maximal"  # or "independent"
    start: str = "uniform"  # or "repeat": the last token committed, a point
    levels: int = 0
    keeps_old_law: bool = False  # wrong: of guesses that stayed as they were
    lies: bool = False  # wrong: a point that says it is uniform
    is_guarded: bool = True  # wrong if not: guesses that stand behind noise pass


def laws(seed):
    """The target's law given the tokens so far: dict prefix -> [V]."""
    draw = np.random.default_rng(seed)
    return {
        prefix: draw.dirichlet(np.ones(VOCAB))
        for size in range(LENGTH + 2 * WINDOW + 2)
        for prefix in itertools.product(range(VOCAB), repeat=size)
    }


def law_of(target, guess):
    if guess.law[0] == "uniform":
        return UNIFORM
    if guess.law[0] == "point":
        return np.eye(VOCAB)[guess.law[1]]
    return target[guess.law[1]]


def rejected(p, q):
    rest = np.maximum(p - q, 0)
    return rest / rest.sum() if rest.sum() > 0 else p


def begun(way, text):
    """[(fresh guess, probability)] behind `text`."""
    if way.levels:
        blank = [Guess(0, ("uniform",), way.levels, read) for read in range(VOCAB)]
        return [(guess, 1 / VOCAB) for guess in blank]
    if way.start == "uniform":
        return [(Guess(token, ("uniform",)), 1 / VOCAB) for token in range(VOCAB)]
    last = text[-1] if text else 0
    return [(Guess(last, ("uniform",) if way.lies else ("point", last)), 1.0)]


def moved(way, target, guess, context):
    """[(the guess of the next call, probability)] of one that was not committed."""
    p, found = target[context], []
    if guess is None:  # what the last lane predicts: there was no guess
        return [(Guess(x, ("context", context)), p[x]) for x in range(VOCAB)]
    if guess.level:
        level = guess.level - 1
        for token in range(VOCAB):
            # Noise moves towards the token, and at the last level is it.
            reads = [(token, 1.0)] if not level else [(token, 0.5), (guess.read, 0.5)]
            for read, share in reads:
                new = Guess(token, ("context", context), level, read if level else -1)
                found.append((new, p[token] * share))
        return found
    if way.coupling == "independent":
        return [(Guess(x, ("context", context)), p[x]) for x in range(VOCAB)]
    q = law_of(target, guess)
    kept = min(1, p[guess.token] / q[guess.token])
    rest = rejected(p, q)
    stays = guess if way.keeps_old_law else Guess(guess.token, ("context", context))
    found.append((stays, kept))
    for token in range(VOCAB):
        found.append((Guess(token, ("context", context)), (1 - kept) * rest[token]))
    return found


def ends(way, target, text, window):
    """[(accepted, next token, probability)] of one call."""
    alive, found = 1.0, []
    for place in range(WINDOW + 1):
        p = target[text + tuple(guess.seen for guess in window[:place])]
        guess = window[place] if place < WINDOW else None
        if guess is None or (guess.level and way.is_guarded):
            return found + [(place, token, alive * p[token]) for token in range(VOCAB)]
        q = law_of(target, guess)
        passes = min(1, p[guess.token] / q[guess.token]) if q[guess.token] else 0.0
        rest = rejected(p, q)
        found += [
            (place, token, alive * (1 - passes) * rest[token]) for token in range(VOCAB)
        ]
        alive *= passes
    return found


def enumerated(way, target):
    """(law of the first LENGTH tokens, expected calls)."""
    states, done, calls = {}, {}, 0.0

    def spread(into, text, choices, mass):
        """Adds `mass` for every combination of `choices`, lists of (guess, chance)."""
        for combination in itertools.product(*choices):
            chance = mass * np.prod([share for _, share in combination])
            if chance > 0:
                key = text, tuple(guess for guess, _ in combination)
                into[key] = into.get(key, 0) + chance

    spread(states, (), [begun(way, ())] * WINDOW, 1.0)
    while states:
        calls += sum(states.values())
        after = {}
        for (text, window), mass in states.items():
            seen = tuple(guess.seen for guess in window)
            for accepted, token, chance in ends(way, target, text, window):
                if chance <= 0:
                    continue
                longer = (*text, *(g.token for g in window[:accepted]), token)
                if len(longer) >= LENGTH:
                    law = longer[:LENGTH]
                    done[law] = done.get(law, 0) + mass * chance
                    continue
                choices = []
                for node in range(accepted + 1, accepted + 1 + WINDOW):
                    is_last = node == WINDOW and not way.levels
                    if node < WINDOW or is_last:
                        guess = window[node] if node < WINDOW else None
                        context = text + seen[:node]
                        choices.append(moved(way, target, guess, context))
                    else:
                        choices.append(begun(way, longer))
                spread(after, longer, choices, mass * chance)
        states = after
    return done, calls


def distance(way, seed=0):
    target = laws(seed)
    found, calls = enumerated(way, target)
    joint = {
        text: np.prod([target[text[:i]][text[i]] for i in range(LENGTH)])
        for text in itertools.product(range(VOCAB), repeat=LENGTH)
    }
    far = 0.5 * sum(abs(found.get(text, 0) - joint[text]) for text in joint)
    return far, calls


EXACT = {
    "sjd": Way("independent"),
    "sjd_repeat": Way("independent", "repeat"),
    "mc_sjd": Way("maximal"),
    "mc_sjd_repeat": Way("maximal", "repeat"),
    "sjd2": Way("independent", levels=1),
    "mc_sjd2": Way("maximal", levels=1),
    "sjd2_two_levels": Way("independent", levels=2),
}
WRONG = {
    "old law of what stayed": Way("maximal", keeps_old_law=True),
    "a copy that says it is uniform": Way("maximal", "repeat", lies=True),
    "behind noise": Way("independent", levels=1, is_guarded=False),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_call_together_is_the_target_law(name):
    for seed in range(2):
        far, calls = distance(EXACT[name], seed)
        assert far < 1e-12
        assert calls <= LENGTH + 1e-9


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_the_lemma_is_biased(name):
    """Negative controls."""
    assert max(distance(WRONG[name], seed)[0] for seed in range(2)) > 1e-3


def test_a_truthful_uniform_law_saves_calls(monkeypatch):
    """The one-hot law of a uniform guess is exact too, and accepts less."""

    def pointed(way, text):
        return [(Guess(x, ("point", x)), 1 / VOCAB) for x in range(VOCAB)]

    truthful = [distance(Way("maximal"), seed)[1] for seed in range(2)]
    monkeypatch.setitem(globals(), "begun", pointed)
    for seed in range(2):
        far, calls = distance(Way("maximal"), seed)
        assert far < 1e-12 and truthful[seed] < calls
