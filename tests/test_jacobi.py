"""Fixed-point methods against slow iterations in Python, and by law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_exact
from test_model_free import CAUSAL, LAW, ROWS, WIDTH

from pdecode import decode as decode_module
from pdecode import methods, prompts
from pdecode.contracts import STOPPED_BY, Codes, Prefix, Sampling
from pdecode.decode import run
from pdecode.drafters import guesses, iterates
from pdecode.families import speculative
from pdecode.rules import accept, relaxed

NEW = 9
BEST = np.argmax(np.asarray(LAW.moves[1, 1]), 1)
PROMPT = prompts.from_rows(ROWS, max_new_tokens=NEW, pad_to=WIDTH)


def decode(method, **sizes):
    out, stats = run(
        method, CAUSAL, LAW, PROMPT, jax.random.key(0),
        knobs={"temperature": 0.0}, max_new_tokens=NEW, **sizes,
    )  # fmt: skip
    tokens = np.asarray(out.tokens)
    made = [
        tokens[b, start : start + length].tolist()
        for b, (start, length) in enumerate(zip(out.start, out.lengths))
    ]
    return made, out, stats


def greedy(row):
    made = [*row]
    for _ in range(NEW):
        made.append(int(BEST[made[-1]]))
    return made[len(row) :]


def trajectory(row, guesses):
    """States of full-block Jacobi, each place moved by the guess before it."""
    states = []
    for _ in range(NEW):
        guesses = [int(BEST[token]) for token in [row[-1], *guesses[:-1]]]
        states.append(guesses)
    return states


def iterated(row, window, block_length):
    """(generation, calls) of sliding or blockwise Jacobi, one row at a time."""
    text, guesses, calls = list(row), [row[-1]] * window, 0
    while len(text) < len(row) + NEW:
        left = window
        if block_length is not None:
            left = min(window, block_length - (len(text) - len(row)) % block_length)
        fed = guesses[:left]
        out = [int(BEST[token]) for token in [text[-1], *fed]]
        same = [*(a == b for a, b in zip(fed, out)), False].index(False)
        text += out[: same + 1]
        rest = out[same + 1 : left if left < window else window + 1]
        guesses = (rest + [text[-1]] * window)[:window]
        calls += 1
    return text[len(row) :][:NEW], calls


@pytest.mark.parametrize("window, block_length", [(4, None), (NEW, 1), (3, 3), (4, 6)])
def test_calls_are_those_of_an_iteration_by_hand(window, block_length):
    made, _, stats = decode(methods.jacobi, window=window, block_length=block_length)
    for b, row in enumerate(ROWS):
        expected, calls = iterated(row, window, block_length)
        assert made[b] == expected == greedy(row)
        assert stats.num_calls[b] == calls
    if block_length == 1:
        assert (np.asarray(stats.num_calls) == NEW).all()


@pytest.mark.parametrize("max_iters", [1, 3, NEW])
def test_an_early_exit_is_a_state_of_the_trajectory(monkeypatch, max_iters):
    monkeypatch.setattr(guesses, "of_text", guesses.repeated)
    made, out, stats = decode(methods.early_exit, window=NEW, max_iters=max_iters)
    num_wrong = 0
    for b, row in enumerate(ROWS):
        assert made[b] == trajectory(row, [row[-1]] * NEW)[max_iters - 1]
        assert made[b][:max_iters] == greedy(row)[:max_iters]
        assert stats.num_calls[b] <= max_iters and stats.num_committed[b] == NEW
        num_wrong += made[b] != greedy(row)
    assert (num_wrong > 0) == (max_iters < NEW)
    log_probs = np.log(np.asarray(LAW.moves[1, 1]))
    if max_iters == NEW:
        for b, row in enumerate(ROWS):
            text = [*row, *made[b]]
            for place in range(len(row), len(text)):
                np.testing.assert_allclose(
                    out.log_probs[b, place],
                    log_probs[text[place - 1], text[place]],
                    atol=1e-4,
                )


def test_a_short_window_leaves_the_rest_open():
    made, out, stats = decode(methods.early_exit, window=2, max_iters=2)
    for b, row in enumerate(ROWS):
        exact = greedy(row)[:2]
        assert made[b][:2] == exact
        is_open = len(made[b]) < NEW
        assert (STOPPED_BY[out.stopped_by[b]] == "max_steps") == is_open
        assert stats.num_committed[b] == len(made[b])
    assert any(len(row) < NEW for row in made)


# Entries: what a fresh guess may read, and by law.


@pytest.mark.parametrize("is_above", [False, True])
def test_copies_follow_the_raster(is_above):
    draw, row_length, window, size = np.random.default_rng(0), 3, 7, 20
    entry = guesses.copied(row_length, is_above=is_above)
    for _ in range(40):
        start = int(draw.integers(1, 5))
        length = start + int(draw.integers(0, 8))
        num_carried = int(draw.integers(0, window + 1))
        tokens = draw.integers(0, 99, size)
        carried_over = draw.integers(100, 199, window)
        canvas = {i: int(tokens[i]) for i in range(length)}
        for j in range(num_carried):
            canvas[length + j] = int(carried_over[j])
        for position in range(length + num_carried, length + window):
            place = position - start
            is_up = place >= row_length and (is_above or place % row_length == 0)
            canvas[position] = canvas[position - (row_length if is_up else 1)]
        opening = guesses.Opening(
            prefix=Prefix(*(jnp.asarray([x]) for x in (tokens, length, size, start))),
            positions=length + jnp.arange(window)[None],
            guesses=jnp.asarray(carried_over)[None],
            carried=jnp.arange(window)[None] < num_carried,
            allowed=jnp.ones(200, bool),
            last=None,
        )
        found = np.asarray(entry.apply(None, opening))[0]
        for j in range(num_carried, window):
            assert found[j] == canvas[length + j], (length, start, num_carried, j)


def excess(decoder, params=test_exact.JOINT):
    """Chi-square of 4000 rows against the exact law, less its mean in sd."""
    law = test_exact.exact_law()
    prompt = prompts.from_rows([[0]] * 4000, max_new_tokens=test_exact.NEW)
    weights = 2 ** jnp.arange(test_exact.NEW - 1, -1, -1)

    @jax.jit
    def outcomes(key):
        out, _ = decode_module.decode(decoder, params, prompt, key)
        codes = (out.tokens[:, 1:] * weights[None]).sum(1)
        return jnp.zeros(len(law), jnp.int32).at[codes].add(1)

    counts = np.asarray(outcomes(jax.random.key(0)))
    expected = counts.sum() * law
    is_rare = expected < 10
    expected = np.append(expected[~is_rare], expected[is_rare].sum())
    counts = np.append(counts[~is_rare], counts[is_rare].sum())
    freedom = len(counts) - 1
    chi2 = ((counts - expected) ** 2 / np.maximum(expected, 1)).sum()
    return (chi2 - freedom) / np.sqrt(2 * freedom)


def begun(entry, transport, **more):
    return speculative.draft_verify(
        test_exact.CAUSAL,
        iterates.iterate(
            test_exact.CAUSAL,
            3,
            Sampling(1.0),
            transport=transport,
            entry=entry,
            **more,
        ),
        max_new_tokens=test_exact.NEW,
        sampling=Sampling(1.0),
        acceptance=accept.by_node(accept.rejection()),
    )


ENTRIES = {
    "text": lambda: begun(guesses.of_text(), guesses.maximal()),
    "left": lambda: begun(guesses.copied(2, is_above=False), guesses.maximal()),
    "above": lambda: begun(guesses.copied(2, is_above=True), guesses.independent()),
    "sample": lambda: begun(guesses.neighbour(), guesses.maximal()),
    "part": lambda: begun(guesses.uniform(), guesses.maximal(), start_ids=(1, 2)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "sample" else pytest.mark.thorough)
        for name in ENTRIES
    ],
)
def test_entries_are_lossless_in_law(name):
    assert excess(ENTRIES[name]()) < 4.5


def test_fresh_guesses_may_come_from_a_part_of_the_vocabulary():
    """Their law is uniform over the part, and told so."""
    drafter = iterates.iterate(
        CAUSAL, 5, Sampling(1.0), transport=guesses.maximal(), start_ids=(1, 3)
    )
    length = jnp.asarray(PROMPT.lengths)
    prefix = Prefix(jnp.zeros((len(ROWS), 20), jnp.int32), length, length + 9, length)
    keys = jax.random.split(jax.random.key(0), len(ROWS))
    params = {"model": LAW}

    @jax.jit
    def proposed(keys, prefix):
        state = drafter.init(params, keys, PROMPT, prefix, None)
        return drafter.propose(params, keys, state, prefix)[0]

    draft = proposed(keys, prefix)
    assert set(np.unique(draft.tokens)) == {1, 2}
    ids = np.arange(CAUSAL.vocab_size)
    wanted = np.where((ids == 1) | (ids == 2), 0.5, 0)
    np.testing.assert_allclose(draft.q, np.broadcast_to(wanted, draft.q.shape))
    for bad in ((3, 3), (0, 99)):
        with pytest.raises(ValueError, match="must hold ids"):
            methods.sjd(CAUSAL, max_new_tokens=4, start_ids=bad)
    with pytest.raises(ValueError, match="must be two"):
        methods.sjd(CAUSAL, max_new_tokens=4, start_ids=(1, 2, 3))


def test_an_entry_that_lies_about_its_law_is_biased():
    """Negative control: a copy of the root that claims to be drawn uniformly."""
    lying = guesses.Entry(guesses.repeated().apply, guesses.UNIFORM)
    assert excess(begun(lying, guesses.maximal())) > 8


def test_an_entry_that_needs_a_law_is_refused_without_one():
    with pytest.raises(ValueError, match="draws from p"):
        iterates.iterate(CAUSAL, 3, Sampling(1.0), entry=guesses.neighbour())
    with pytest.raises(ValueError, match="start='vertical' needs row_length"):
        methods.sjd(CAUSAL, max_new_tokens=4, start="vertical")


def test_groups_of_one_token_are_plain_speculative_jacobi():
    def tokens(method, temperature=1.0, **settings):
        knobs = {"temperature": temperature}
        if "max_gap" in settings:
            knobs["max_gap"] = settings.pop("max_gap")
        out, stats = run(
            method, CAUSAL, LAW, PROMPT, jax.random.key(3), knobs=knobs,
            max_new_tokens=NEW, window=4, **settings,
        )  # fmt: skip
        return np.asarray(out.tokens), int(stats.num_calls.sum())

    plain, num_calls = tokens(methods.sjd, transport="independent")
    alone, same_calls = tokens(methods.gsd, max_gap=0.0)
    np.testing.assert_array_equal(alone, plain)
    assert same_calls == num_calls
    _, fewer = tokens(methods.gsd, max_gap=1.0)
    assert fewer < num_calls


def test_groups_by_codes_are_between_plain_jacobi_and_groups_by_rank():
    """No distance allowed: speculative Jacobi; any: the groups of rank alone."""
    codes = Codes(CAUSAL.vocab_size)
    line = jnp.arange(CAUSAL.vocab_size, dtype=jnp.float32)[:, None]

    def tokens(method, params=None, knobs=None):
        given = {"model": LAW} if params is None else {"model": LAW, "codes": params}
        out, stats = run(
            method, CAUSAL if params is None else (CAUSAL, codes), given, PROMPT,
            jax.random.key(3), knobs={"temperature": 1.0, **(knobs or {})},
            max_new_tokens=NEW, window=4,
            **({"transport": "independent"} if method is methods.sjd else {}),
        )  # fmt: skip
        return np.asarray(out.tokens), int(stats.num_calls.sum())

    plain, num_calls = tokens(methods.sjd)
    ranked, fewer = tokens(methods.gsd, knobs={"max_gap": 1.0})
    near = {"max_gap": 1.0, "max_distance": 1.5}
    for knobs, wanted in (
        ({**near, "max_distance": 0.0}, plain),
        ({**near, "max_distance": 1e9}, ranked),
    ):
        found, _ = tokens(methods.gsd_codebook, line, knobs)
        np.testing.assert_array_equal(found, wanted)
    _, between = tokens(methods.gsd_codebook, line, near)
    assert fewer <= between <= num_calls and fewer < num_calls
    single = jnp.asarray(relaxed.clusters(line, 0.0))
    found, _ = tokens(methods.gsd_partition, single)
    np.testing.assert_array_equal(found, plain)
    # One group: whatever is guessed is kept, so a call gives 1 + window tokens.
    one = jnp.asarray(relaxed.clusters(line, 1e9))
    _, fewest = tokens(methods.gsd_partition, one)
    assert fewest == len(ROWS) * -(-NEW // 5)


def test_ids_that_no_guess_is_drawn_from_are_refused():
    with pytest.raises(ValueError, match="draws no ids"):
        methods.sjd(CAUSAL, max_new_tokens=4, start="repeat", start_ids=(0, 2))
