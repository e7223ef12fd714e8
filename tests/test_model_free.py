"""Drafters without a model: a slow Python search tells every draft they make.

A lossless method that drafts nothing keeps every other test green.
"""

import collections
import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import assembly, knobs, methods, prompts
from pdecode import decode as decode_module
from pdecode.contracts import Prefix, Sampling
from pdecode.data import datastore, snippets
from pdecode.decode import decode_state, finish, with_trace
from pdecode.drafters import (
    aligned,
    averaged,
    lookahead,
    ngram,
    phrases,
    preferring,
    recycling,
    retrieval,
)
from pdecode.families import speculative, speculative_calls
from pdecode.methods import variants
from pdecode.models import toy, transformer

VOCAB, LENGTH, NEW = 4, 40, 24
CAUSAL = toy.make_model(VOCAB, LENGTH)
ROWS = [[0, 1, 2, 0, 1], [2, 3, 2, 3, 2, 1], [1], [3, 3, 0, 3, 3, 0, 1, 3]]
WIDTH = 8
PAIRS = [[0, 1, 1], [1, 0], [0], [1, 1, 0]]  # of the laws over two tokens


def homogeneous(seed, sharpness=2.5, length=LENGTH):
    """A Markov law with one transition matrix everywhere, so that texts repeat."""
    scores = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB)) * sharpness
    step = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    moves = np.ones((length + 1, length + 1, VOCAB, VOCAB))
    for first in range(length):
        for last in range(first, length):
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
        blank = jnp.zeros((len(prefix.length), drafter.num_nodes), jnp.int32)
        num_top = max([0, *(int(w[4:]) for w in drafter.wants if w[:4] == "top:")])
        top = jnp.zeros((len(prefix.length), 1 + drafter.num_nodes, num_top), jnp.int32)
        none = jnp.zeros_like(prefix.length)
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


def turns_of(drafter, seed=0, temperature=1.0, params=None, model=CAUSAL, new=NEW):
    """All turns of all rows, row by row."""
    params = {"model": LAW} if params is None else params
    rows = ROWS if model is CAUSAL else PAIRS
    decoder = with_trace(
        speculative.draft_verify(
            model,
            recorded(drafter),
            max_new_tokens=new,
            sampling=Sampling(temperature),
        ),
        lambda state, info: (*state.drafter[1], info.num_calls),
        new,
    )
    prompt = prompts.from_rows(rows, max_new_tokens=new, pad_to=max(map(len, rows)))

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
            for t in range(new)
            if calls[t, b]
        ]
        for b in range(len(rows))
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


def push(entries, gram, size):
    """The pool of one token after `gram`: newest last, the oldest dropped."""
    return ([each for each in entries if each != gram] + [gram])[-size:]


def test_the_pool_keeps_the_newest_of_each_token():
    draw = np.random.default_rng(0)
    keys = draw.integers(-1, 3, (2, 60))
    grams = draw.integers(0, 2, (2, 60, 2))
    pool = jnp.full((2, 3, 3, 2), -1, jnp.int32)
    found = np.asarray(jax.jit(lookahead.inserted)(pool, keys, grams))
    for b in range(2):
        expected = {token: [] for token in range(3)}
        for key, gram in zip(keys[b], grams[b].tolist()):
            if key >= 0:
                expected[key] = push(expected[key], gram, 3)
        for token, entries in expected.items():
            assert found[b, token, 3 - len(entries) :].tolist() == entries


def played(row, window, level, width, size, prompt):
    """Lookahead decoding of one row in plain Python: asserts each of its drafts."""
    step = np.asarray(LAW.moves[1, 1])
    follows = {token: int(np.argmax(step[token])) for token in range(VOCAB)}
    pool = {token: [] for token in range(VOCAB)}
    for i in range(len(prompt) - level + 1):
        pool[prompt[i]] = push(pool[prompt[i]], prompt[i + 1 : i + level], size)
    for age, turn in enumerate(row):
        root = turn.text[-1]
        expected = [token for gram in pool[root] for token in gram]
        missing = size * (level - 1) - len(expected)
        drafted = turn.tokens[: size * (level - 1)]
        assert drafted == [-1] * missing + expected, turn
        window[0][0] = root
        new = [follows[token] for token in window[-1]]
        for j in range(width):
            column = [*(line[j] for line in window), new[j]]
            if age >= level - 2:
                pool[column[0]] = push(pool[column[0]], column[1:], size)
        window = [*(list(line) for line in window[1:]), new]


@pytest.mark.parametrize("level, width, size", [(2, 1, 1), (2, 3, 2), (4, 3, 3)])
def test_lookahead_drafts_what_its_window_wrote(level, width, size):
    drafter = lookahead.lookahead(CAUSAL, level, width, size)
    begun = []

    def init(*given):
        state = drafter.init(*given)
        jax.debug.callback(lambda w: begun.append(np.array(w)), state.window)
        return state

    rows = turns_of(drafter._replace(init=init), temperature=0.0)
    for b, row in enumerate(rows):
        played(row, begun[0][b].tolist(), level, width, size, ROWS[b])
    assert sum(turn.num_accepted for row in rows for turn in row) > 20


JOINT = toy.joint(5, 2, 12)
JOINT_MODEL = toy.make_model(2, 12)


def law_after(text, law=JOINT):
    """P(1) behind `text`, by enumeration."""
    strings, chances = np.asarray(law.strings), np.exp(np.asarray(law.log_probs))
    chances = chances * (strings[:, : len(text)] == text).all(1)
    return chances[strings[:, len(text)] == 1].sum() / chances.sum()


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_probe_sees_its_own_text_and_nothing_else(is_broken):
    """The packed call equals a plain call on each probe's text."""
    level, width = 4, 3
    drafter = lookahead.lookahead(JOINT_MODEL, level, width, 1)
    plan = speculative.checked(
        JOINT_MODEL, drafter, 6, Sampling(0.0), "match", ()
    )  # fmt: skip
    prompt = prompts.from_rows([[0, 1, 1], [1, 0]], max_new_tokens=6)

    @jax.jit
    def packed(key):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(2))
        state, _ = speculative.init(plan, {"model": JOINT}, keys, prompt)
        draft, _ = drafter.propose({}, keys, state.drafter, state.prefix)
        if is_broken:
            size = draft.among.shape[1]
            below = jnp.tril(jnp.ones((size, size), bool))
            draft = draft._replace(among=jnp.broadcast_to(below, draft.among.shape))
        draft = speculative_calls.sanitized(draft, plan)
        query, _ = speculative_calls.verify_query(draft, state.prefix, plan)
        output, _ = JOINT_MODEL.apply(JOINT, query, state.cache)
        return state.drafter.window, jnp.exp(output.hidden[..., 1])

    differs = []
    for seed in range(4):
        window, chances = map(np.asarray, packed(jax.random.key(seed)))
        for b, text in enumerate([[0, 1, 1], [1, 0]]):
            places = itertools.product(range(3), range(3))
            for lane, (row, column) in enumerate(list(places)[1:], 4):
                path = [*text, *window[b, 0, 1 : column + 1]]
                path += window[b, 1 : row + 1, column].tolist()
                differs.append(abs(chances[b, lane] - law_after(path)))
    assert (max(differs) > 1e-2) == is_broken
    assert is_broken or max(differs) < 1e-5


def test_averages_are_means_over_visits():
    """Against a dict of lists; a slot never has two contexts at this size."""
    plan = averaged.Plan(CAUSAL, recycling.template((1,), 3), (2, 1), 3, 1 << 16)
    draw = np.random.default_rng(1)
    recent = draw.integers(0, 3, (1, 40, 2))
    recent[0, :3, 1] = -1  # the text has one token yet
    logits = draw.normal(size=(1, 40, 8))
    laws = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-laws, -1)[..., :3]
    log_probs = np.log(np.take_along_axis(laws, ids, -1)).astype(np.float32)
    seen = draw.random((1, 40)) < 0.8
    table = averaged._init(plan, {}, None, None, Prefix(jnp.zeros((1, 9), int),
                           jnp.ones(1, int), None, None), None)  # fmt: skip
    table = averaged.visited(
        plan, table, *map(jnp.asarray, (recent, seen, ids, log_probs))
    )
    means, counts = {}, collections.Counter()
    for q in np.flatnonzero(seen[0]):
        for size in (2, 1):
            key = tuple(recent[0, q, :size])
            if -1 in key:
                continue
            mean = {i: p * counts[key] for i, p in means.get(key, {}).items()}
            for i, log_prob in zip(ids[0, q], log_probs[0, q]):
                mean[i] = mean.get(i, 0) + np.exp(log_prob)
            counts[key] += 1
            best = sorted(mean, key=mean.get, reverse=True)[:3]
            means[key] = {i: mean[i] / counts[key] for i in best}
    num_asked = 0
    for pair in itertools.product(range(4), repeat=2):
        found, probs = averaged.looked_up(plan, table, jnp.array([[pair]]))
        expected = means.get(pair, means.get(pair[:1], {}))
        found = found[0, 0].tolist()
        assert found == [*expected, *[-1] * (3 - len(expected))]
        np.testing.assert_allclose(
            probs[0, 0, : len(expected)], list(expected.values()), rtol=1e-5
        )
        num_asked += len(expected)
    assert num_asked >= 24 and pair == (3, 3) and found == [-1] * 3


def test_averaged_drafts_come_from_the_longest_context():
    tree = recycling.template((2, 2, 1), 2)
    drafter = averaged.averaged(CAUSAL, tree, 2, contexts=(2, 1), num_slots=1 << 16)
    step = np.asarray(LAW.moves[1, 1])
    best = {token: np.argsort(-step[token])[:2].tolist() for token in range(VOCAB)}
    rows = turns_of(drafter)
    for turn in (turn for row in rows for turn in row):
        # All but the root's own context was predicted by the target: a Markov law.
        known = set(turn.text[:-1])
        assert turn.tokens == fill(tree, {t: best[t] for t in known}, turn.text[-1])
    assert sum(turn.num_accepted for row in rows for turn in row) > 30


def test_alternatives_are_what_the_target_said_there():
    """The law is Markov, so what it said at a place follows from the token before."""
    step = np.asarray(LAW.moves[1, 1])
    rows = turns_of(aligned.aligned(CAUSAL, 3, 2, 2))
    num_beside = 0
    for turn in (turn for row in rows for turn in row):
        text = turn.text
        copied = look_up(text, 3, 2, False)
        expected, parents = [], []
        for depth in range(3):
            parents += [3 * depth - 3 if depth else -1] * 3
            if depth >= len(copied):
                expected += [-1] * 3
                continue
            before = (text[-1:] + copied)[depth]  # as a copy, it follows the same token
            best = np.argsort(-step[before])[:2].tolist()
            expected += [copied[depth]]
            expected += [-1 if token == copied[depth] else token for token in best]
        assert turn.tokens == expected and turn.parents == parents
        num_beside += sum(token >= 0 for token in expected) - len(copied)
    assert num_beside > 50
    alone = turns_of(ngram.prompt_lookup(3, 2))
    taken, plain = (
        sum(turn.num_accepted for row in each for turn in row) for each in (rows, alone)
    )
    assert taken > plain


def written_by(params, text, num):
    """Greedy continuation of a law over two tokens."""
    for _ in range(num):
        inside = len(text) < 12  # behind the last position anything may follow
        text = [*text, int(inside and law_after(text, params) > 0.5)]
    return text[-num:] if num else []


@pytest.mark.parametrize("is_stale", [False, True])
def test_phrases_are_what_the_target_wrote_at_refused_nodes(is_stale):
    """All of it by hand, the draft model's part too: a stale cache of its shows."""
    drafter = phrases.phrased(JOINT_MODEL, Sampling(0.0), 3, 2, 2, 3)

    def propose(params, keys, state, prefix):
        if is_stale:  # the draft model is told that it has seen everything
            inner = state.inner._replace(written=prefix.length)
            state = state._replace(inner=inner)
        return drafter.propose(params, keys, state, prefix)

    if is_stale:
        with pytest.raises(AssertionError, match="draft"):
            assert_phrases(drafter._replace(propose=propose))
    else:
        assert_phrases(drafter)


def test_phrases_longer_than_the_chain_are_refused():
    with pytest.raises(ValueError, match="phrase_len=4 must be at most num_draft=3"):
        phrases.phrased(JOINT_MODEL, Sampling(0.0), 3, 4, 2, 3)


def assert_phrases(drafter):
    other = toy.mixed(JOINT, toy.joint(6, 2, 12), 0.45)
    params = {"model": JOINT, "drafter": other}
    rows = turns_of(drafter, 0, 0.0, params, JOINT_MODEL, new=9)
    most = num_behind = 0
    for row in rows:
        pool = {token: [] for token in range(2)}
        for turn in row:
            chain = written_by(other, turn.text, 3)
            behind = [[-1, -1]] * (2 - len(pool[chain[-1]][-2:]))
            behind += pool[chain[-1]][-2:]
            assert turn.tokens == [*chain, *behind[0], *behind[1]], ("draft", turn)
            num_behind += sum(token >= 0 for token in turn.tokens[3:])
            wanted = [
                *(written_by(JOINT, turn.text + chain[:i], 1)[0] for i in range(4)),
            ]
            for lane in range(2):
                if lane >= turn.num_accepted:
                    gram = wanted[lane + 1 : lane + 3]
                    pool[wanted[lane]] = push(pool[wanted[lane]], gram, 3)
            if turn.num_accepted >= 3:
                for phrase in behind:
                    if phrase[0] >= 0:
                        path = turn.text + chain + phrase[:1]
                        gram = [wanted[3], *written_by(JOINT, path, 1)]
                        pool[chain[-1]] = push(pool[chain[-1]], gram, 3)
            most = max(most, turn.num_accepted)
    assert num_behind > 5 and most > 3, (num_behind, most)


DRAWN = np.random.default_rng(3)
DOCUMENTS = [DRAWN.integers(0, 3, size).tolist() for size in (30, 1, 17, 40, 0, 5)]


def follow(documents, text, min_match, length):
    """What follows every copy of the longest end of `text` that has one."""
    for size in range(min(16, len(text)), min_match - 1, -1):
        found = [
            document[end : end + length]
            for document in documents
            for end in range(size, len(document))
            if document[end - size : end] == text[-size:]
        ]
        if found:
            return found
    return []


def test_retrieval_finds_the_most_frequent_continuations():
    store, texts = datastore.build(DOCUMENTS)
    params = {"model": LAW, "corpus": jax.tree.map(jnp.asarray, texts)}
    drafter = retrieval.retrieval(store, 6, min_match=2, num_matches=128, length=4)
    num_drafted = num_none = 0
    rows = turns_of(drafter, params=params)
    for turn in (turn for row in rows for turn in row):
        counts = collections.Counter(
            tuple(each[: size + 1])
            for each in follow(DOCUMENTS, turn.text, 2, 4)
            for size in range(len(each))
        )
        paths = []
        for token, parent in zip(turn.tokens, turn.parents):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        paths = paths[: sum(token >= 0 for token in turn.tokens)]
        assert len(set(paths)) == len(paths)
        # Of equally frequent and long ones any will do.
        scores = sorted((counts[path] * 4 - len(path) for path in paths), reverse=True)
        every = sorted((c * 4 - len(path) for path, c in counts.items()), reverse=True)
        assert scores == every[:6], turn
        num_drafted += len(paths)
        num_none += not counts
    assert num_drafted > 100 and num_none > 0
    assert sum(turn.num_accepted for row in rows for turn in row) > 3


@pytest.mark.parametrize("num_matches", [3, 8])
def test_some_of_many_copies_are_read_evenly(num_matches):
    store, texts = datastore.build([[0, 1, i % 5, 9] for i in range(20)])
    texts = datastore.Texts(*map(jnp.asarray, texts))
    plan = retrieval.Plan(store.max_match, 1, num_matches, 2, 1)
    found = retrieval.continuations(plan, texts, jnp.array([7, 0, 1]), jnp.int32(3))
    assert found.shape == (num_matches, 2) and (found[:, 1] == 9).all()
    assert len(set(found[:, 0].tolist())) == min(num_matches, 5)


def test_a_datastore_is_a_safe_file(tmp_path):
    store, texts = datastore.build(DOCUMENTS)
    datastore.save(tmp_path / "texts.npy", texts)
    again, loaded = datastore.load(tmp_path / "texts.npy")
    assert again == store and isinstance(loaded.tokens, np.memmap)
    jax.tree.map(np.testing.assert_array_equal, texts, loaded)
    np.save(tmp_path / "floats.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match="it holds float64"):
        datastore.load(tmp_path / "floats.npy")
    np.save(tmp_path / "code.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "texts.npy").read_bytes()[:-9])
    for name in ("code", "cut", "none"):
        with pytest.raises(ValueError, match="is no datastore"):
            datastore.load(tmp_path / f"{name}.npy")
    with pytest.raises(ValueError, match="hold no token"):
        datastore.build([[], []])
    with pytest.raises(ValueError, match="min_match=17"):
        retrieval.retrieval(store, 6, min_match=17)


TINY_CONFIG = transformer.Config(
    vocab_size=40, width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    mlp_width=16, max_positions=64,
)  # fmt: skip
TINY = transformer.make_model(TINY_CONFIG)
TABLES = {
    "token_recycling": ({"widths": (3, 2), "num_top": 5}, "4,40,5"),
    "stand": (
        {"widths": (3, 2), "num_top": 5, "contexts": (2,), "num_slots": 48},
        "4,1,48,5",
    ),
    "lookahead": (
        {"level": 3, "window_size": 3, "guess_set_size": 3, "pool_from_prompt": False},
        "4,40,3,2",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_no_copy_of_the_table_in_the_loop(name):
    """A step then costs the same at every size of the table."""
    sizes, shape = TABLES[name]
    params = transformer.init(TINY_CONFIG, jax.random.key(0))
    prompt = prompts.from_rows(ROWS, max_new_tokens=9)
    traced, _ = decode_module.traced(
        getattr(methods, name), TINY, params, prompt, jax.random.key(0),
        max_new_tokens=9, **sizes,
    )  # fmt: skip
    text = traced.lower().compile().as_text()
    assert f"s32[{shape}]" in text
    found = copies_in_loops(text, shape)
    assert not found, found


def test_a_copy_of_the_table_is_caught():
    """Negative control: a value read from the table leaves the loop by another way."""

    def body(carry):
        table, place, read = carry
        read = jnp.take_along_axis(table, place[:, None, None], 1)[:, 0]
        return table.at[:, 0].set(7), place + 1, read

    @jax.jit
    def loop(table):
        place, read = jnp.zeros(4, jnp.int32), jnp.zeros((4, 5), jnp.int32)
        return jax.lax.while_loop(
            lambda c: (c[1] < 9).all(), body, (table, place, read)
        )

    text = loop.lower(jnp.zeros((4, 40, 5), jnp.int32)).compile().as_text()
    assert copies_in_loops(text, "4,40,5")


def copies_in_loops(text, shape):
    """Copies, selects and transposes of a table, outside the entry computation."""
    found, is_entry = [], False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            is_entry = line.startswith("ENTRY")
        if not is_entry and re.search(
            rf"= [sf]32\[{shape}\]\S* (copy|select|transpose)\(", line
        ):
            found.append(line.strip()[:120])
    return found


# A transformer's wide and narrow calls differ in the last bits; see quality.identity.
EMBEDDED = {
    "aggressive_decoding": {"num_draft": 6},
    "auto_lookup": {"num_draft": 4},
    "cascade": {"num_draft": 4, "num_copied": 3},
    "alignment_sampling": {"num_draft": 4},
    "cllm": {},
    "lookahead": {"level": 3, "window_size": 4, "guess_set_size": 3},
    "ouroboros": {"num_draft": 4, "phrase_len": 3, "num_phrases": 2},
    "pld_original": {"num_draft": 4},
    "rest": {"num_draft": 12, "draft_len": 4, "num_matches": 16},
    "sam_decoding": {"num_draft": 6, "widths": (3, 3)},
    "stand": {"widths": (3, 3)},
    "token_recycling": {"widths": (3, 3, 2)},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_target_says_what_it_says_alone(name):
    """Tokens of plain sampling with the same seed, rows of a batch of four."""
    model, params, tokenizer = assembly.load("target")
    found = snippets.prompts(4, max_prompt=128)
    rows = [tokenizer.encode(each.prompt) for each in found]
    prompt = prompts.from_rows(rows, max_new_tokens=24, model=model)
    method, own = variants.resolve(name)
    store, texts = datastore.build([tokenizer.encode(each.reference) for each in found])
    second = {
        "drafter": assembly.load("drafter")[:2],
        "corpus": (store, jax.tree.map(jnp.asarray, texts)),
    }
    roles = knobs.roles(method)[1:]
    models = (model, *(second[role][0] for role in roles))
    every = {"model": params, **{role: second[role][1] for role in roles}}
    num_near = 0
    for temperature in (0.0, 0.8):
        given = {"knobs": {"temperature": temperature}, "max_new_tokens": 24}
        key = jax.random.key(4)
        plain, _ = decode_module.run(
            methods.autoregressive, model, params, prompt, key, **given
        )
        out, stats = decode_module.run(
            method, models, every, prompt, key, **given, **own, **EMBEDDED[name]
        )
        same = (np.asarray(out.tokens) == np.asarray(plain.tokens)).all(1)
        num_near += int((~same).sum())
        if temperature == 0:
            assert (np.asarray(stats.num_calls) < stats.num_committed).any()
    assert num_near == 0, "a near-tie? look at its margin before you trust this"
