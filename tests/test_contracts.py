"""The contracts under stress, on models whose every probability is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import cache as caches
from pdecode import decode as decode_module
from pdecode import methods, prompts, rng, trees
from pdecode.contracts import (
    Draft,
    Drafter,
    Prompt,
    Query,
    Refresh,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.decode import run
from pdecode.drafters import causal, ignore, ngram
from pdecode.families import masked, speculative
from pdecode.kernels.head import api as vocab_head
from pdecode.methods import variants
from pdecode.models import toy
from pdecode.rules import blocks, guidance

VOCAB, LENGTH = 3, 8
LAW = toy.joint(7, VOCAB, LENGTH)
CAUSAL = toy.make_model(VOCAB, LENGTH)
MASKED = toy.make_model(VOCAB, LENGTH, predicts="masked")


def decode(decoder, params, prompt, key):
    """One compiled program, as decodes are meant to be."""
    program = jax.jit(functools.partial(decode_module.decode, decoder))
    return program(params, prompt, key)


def conditional(known, position):
    """The law [V] of `position` given {position: token}, by enumeration."""
    strings = np.asarray(LAW.strings)
    probs = np.exp(np.asarray(LAW.log_probs, np.float64))
    for place, token in known.items():
        probs = probs * (strings[:, place] == token)
    law = np.bincount(strings[:, position], weights=probs, minlength=VOCAB)
    return law / law.sum()


def ask(model, tokens, positions, slots, visible, cache=None, num_slots=LENGTH):
    """(probabilities [Q, V], cache) of a one-row call."""
    prompt = Prompt(*[jnp.zeros((1, 1), jnp.int32)] * 1, *[jnp.ones(1, jnp.int32)] * 3)
    cache = model.init_cache(prompt, num_slots) if cache is None else cache
    lanes = [jnp.asarray([x], jnp.int32) for x in (tokens, positions, slots)]
    visible = Visibility(*[None if v is None else jnp.asarray([v]) for v in visible])
    out, cache = model.apply(LAW, Query(*lanes, visible), cache)
    return np.exp(np.asarray(out.hidden[0, :, :VOCAB])), cache


# The toy answers from exactly the keys that a query sees.


def test_causal_queries():
    tokens = [0, 2, 1]
    got, _ = ask(CAUSAL, tokens, [0, 1, 2], [0, 1, 2], ([0] * 3, [1, 2, 3], None, None))
    for lane in range(3):
        known = {i: tokens[i] for i in range(lane + 1)}
        np.testing.assert_allclose(got[lane], conditional(known, lane + 1), atol=1e-5)


def test_masked_queries_read_both_sides():
    tokens = [0, VOCAB, 1, VOCAB, VOCAB, 2]
    place = list(range(6))
    got, _ = ask(MASKED, tokens, place, place, ([0] * 6, [6] * 6, None, None))
    known = {0: 0, 2: 1, 5: 2}
    for position in (1, 3, 4):
        np.testing.assert_allclose(
            got[position], conditional(known, position), atol=1e-5
        )


def test_deepest_is_the_end_of_the_longest_path():
    draw = np.random.default_rng(0)
    parents = np.array([[draw.integers(-1, n) for n in range(9)] for _ in range(64)])
    hit = draw.random(parents.shape) < 0.7
    reach = trees.ancestors(jnp.asarray(parents))
    found = trees.deepest(jnp.asarray(hit), reach, trees.depths(reach))
    for b, row in enumerate(parents):
        length = {0: 0}  # of the paths that hit, by lane
        for n, parent in enumerate(row):
            if hit[b, n] and parent + 1 in length:
                length[n + 1] = length[parent + 1] + 1
        assert found[b] == max(length, key=lambda lane: (length[lane], -lane))


def test_tree_lanes_see_their_ancestors_only():
    # root 0; nodes 1, 2 are its children with tokens 1, 2; node 3 a child of 2.
    reach = trees.ancestors(jnp.array([[-1, -1, 1]]))[0]
    got, _ = ask(
        CAUSAL,
        [0, 1, 2, 1],
        [0, 1, 1, 2],
        [0, 1, 2, 3],
        ([0] * 4, [0] * 4, None, reach),
    )
    np.testing.assert_allclose(got[1], conditional({0: 0, 1: 1}, 2), atol=1e-5)
    np.testing.assert_allclose(got[3], conditional({0: 0, 1: 2, 2: 1}, 3), atol=1e-5)


def test_block_causal_and_any_order_queries():
    # Blocks of two: lane 0 sees lane 1, but not lanes 2 and 3.
    got, _ = ask(
        MASKED,
        [VOCAB, 1, VOCAB, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        ([0] * 4, [2, 2, 4, 4], None, None),
    )
    np.testing.assert_allclose(got[0], conditional({1: 1}, 0), atol=1e-5)
    np.testing.assert_allclose(got[2], conditional({1: 1, 3: 2}, 2), atol=1e-5)
    # Keys in commit order: slot 0 holds position 5, slot 1 position 2.
    got, cache = ask(
        MASKED, [1, 0], [5, 2], [0, 1], ([0, 0], [2, 2], None, None), num_slots=4
    )
    got, _ = ask(MASKED, [VOCAB], [3], [9], ([0], [2], None, None), cache=cache)
    np.testing.assert_allclose(got[0], conditional({5: 1, 2: 0}, 3), atol=1e-5)


def test_a_query_that_sees_nothing_gives_the_marginal():
    for among in (None, jnp.zeros((1, 1), bool)):
        got, _ = ask(MASKED, [VOCAB], [4], [99], ([0], [0], None, among))
        np.testing.assert_allclose(got[0], conditional({}, 4), atol=1e-5)


def test_holes_and_stale_slots_change_the_answer():
    got, cache = ask(CAUSAL, [0, 2], [0, 1], [0, 1], ([0, 0], [1, 2], None, None))
    hole = jnp.array([True, False, *[False] * 6])
    got, _ = ask(CAUSAL, [1], [2], [9], ([0], [2], hole, [[True]]), cache=cache)
    np.testing.assert_allclose(got[0], conditional({0: 0, 2: 1}, 3), atol=1e-5)
    # One slot too many: position 1 is then seen, and the answer is another.
    stale, _ = ask(CAUSAL, [1], [2], [9], ([0], [2], None, [[True]]), cache=cache)
    assert np.abs(stale[0] - got[0]).max() > 1e-3


def test_a_key_seen_twice_shows():
    _, cache = ask(CAUSAL, [0], [0], [0], ([0], [1], None, None))
    once, _ = ask(CAUSAL, [0], [0], [9], ([0], [1], None, [[False]]), cache=cache)
    twice, _ = ask(CAUSAL, [0], [0], [9], ([0], [1], None, [[True]]), cache=cache)
    assert np.abs(once - twice).max() > 0.1


def test_the_chain_agrees_with_its_table():
    chain = toy.chain(3, 2, 5)
    steps = np.asarray(chain.moves)[np.arange(5), np.arange(5)]
    strings = np.array(list(itertools.product(range(2), repeat=5)))
    probs = np.array(
        [
            np.prod([steps[i, s[i - 1] if i else 0, s[i]] for i in range(5)])
            for s in strings
        ]
    )
    model = toy.make_model(2, 5, predicts="masked")
    prompt = prompts.from_rows([[2, 1, 2, 2, 0], [0, 2, 2, 2, 2]], max_new_tokens=1)
    place = jnp.broadcast_to(jnp.arange(5), (2, 5))
    query = Query(
        prompt.tokens, place, place, Visibility(0 * place, jnp.full((2, 5), 5))
    )
    cache = model.init_cache(prompt, 5)
    outs = [
        model.apply(law, query, cache)[0].hidden
        for law in (chain, toy.table(strings, probs))
    ]
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-4)


# Cache helpers.


def test_move_reads_before_it_writes_and_drops():
    leaf = jnp.arange(2 * 1 * 5 * 1).reshape(2, 1, 5, 1)
    source = jnp.array([[0, 1, 2], [4, 0, 0]])
    target = jnp.array([[1, 2, 5], [0, 99, 4]])
    moved = caches.move({"k": leaf}, source, target)["k"][:, 0, :, 0]
    assert moved.tolist() == [[0, 0, 1, 3, 4], [9, 6, 7, 8, 5]]


def test_a_run_is_written_the_same_by_slices_and_by_scatter():
    leaf = jnp.arange(3 * 2 * 9 * 4).reshape(3, 2, 9, 4)
    values = -1 - jnp.arange(3 * 2 * 4 * 4).reshape(3, 2, 4, 4)
    first = jnp.array([0, 5, 2], jnp.int32)
    lanes = jnp.array([[0, 1, 2, 3], [5, 6, 7, 8], [2, 3, 4, 5]], jnp.int32)
    wanted = np.array(leaf)
    for row, slots in enumerate(lanes):
        wanted[row][:, slots] = values[row]
    for written in (
        caches.write(leaf, lanes, values),
        caches.write(leaf, SlotRun(first), values),
        caches.write_slices(leaf, SlotRun(first), values),
    ):
        np.testing.assert_array_equal(written, wanted)


def test_a_run_stores_the_lanes_it_names_and_none_beyond_the_cache():
    leaf = jnp.arange(4 * 2 * 9 * 4).reshape(4, 2, 9, 4)
    values = -1 - jnp.arange(4 * 2 * 4 * 4).reshape(4, 2, 4, 4)
    run = SlotRun(
        jnp.array([0, 7, 2, 9], jnp.int32),
        jnp.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool),
    )
    wanted = np.array(leaf)
    for row, lanes in enumerate(([0, 2, 3], [0, 1], [], [])):
        for lane in lanes:
            wanted[row, :, int(run.start[row]) + lane] = values[row, :, lane]
    for written in (
        caches.write(leaf, run, values),
        caches.write(leaf, caches.each_slot(run, 4), values),
        jax.jit(caches.write_slices)(leaf, run, values),
    ):
        np.testing.assert_array_equal(written, wanted)
    np.testing.assert_array_equal(caches.write(leaf, None, values), leaf)


@pytest.mark.parametrize("pred", [True, False])
def test_when_runs_one_branch(pred):
    def add(cache):
        return cache.sum(), cache + 1

    def keep(cache):
        return -cache.sum(), cache

    out, cache = jax.jit(lambda p, c: caches.when(p, add, keep, c))(pred, jnp.ones(3))
    assert float(out) == (3 if pred else -3)
    assert cache.tolist() == ([2] * 3 if pred else [1] * 3)


# Families.


def generations(out):
    out = jax.tree.map(np.asarray, out)
    return [
        row[start : start + length].tolist()
        for row, start, length in zip(out.tokens, out.start, out.lengths)
    ]


def decoded_in_blocks(window, refresh):
    """A greedy decode of three rows in blocks of three, and its stats."""
    decoder = masked.masked_diffusion(
        toy.make_model(VOCAB, 16, predicts="masked"),
        masked_rule(),
        max_new_tokens=12,
        sampling=Sampling(0.0),
        blocks=blocks.generation(3),
        window=window,
        refresh=refresh,
    )
    prompt = prompts.from_rows([[0], [1, 2, 0, 1], [2, 2]], max_new_tokens=[12, 7, 9])
    return decode(decoder, toy.chain(2, VOCAB, 16), prompt, jax.random.key(0))


@pytest.mark.parametrize("refresh", [None, masked.windows.at_block_start])
def test_a_window_is_the_same_as_a_run_and_position_by_position(refresh):
    def by_position(*facts):
        made = masked.windows.active_block(*facts)
        assert made.is_run
        return made._replace(is_run=False)

    jax.tree.map(
        np.testing.assert_array_equal,
        decoded_in_blocks(masked.windows.active_block, refresh),
        decoded_in_blocks(by_position, refresh),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_caches_with_block_starts_of_their_own(temperature):
    """On the toy a key says only (token, position): cached decoding is exact there."""
    law = toy.chain(2, VOCAB, 16)
    model = toy.make_model(VOCAB, 16, predicts="masked")
    prompt = prompts.from_rows([[0], [1, 2, 0, 1], [2, 2]], max_new_tokens=[12, 7, 9])
    results = {}
    for cache in ("none", "prefix", "dual"):
        out, stats = run(
            methods.fast_dllm,
            model,
            law,
            prompt,
            jax.random.key(5),
            knobs={"temperature": temperature, "threshold": 0.7},
            max_new_tokens=12,
            block_length=3,
            cache=cache,
        )
        results[cache] = generations(out), stats
    assert results["none"][0] == results["prefix"][0] == results["dual"][0]
    asked = [int(results[c][1].num_query_tokens.sum()) for c in results]
    assert asked[0] > asked[1] > asked[2]


def test_a_window_without_refresh_is_caught():
    """Negative control: K/V of an earlier block that were never recomputed."""

    never = Refresh(lambda row: row.turn < 0)
    kept, stale = (
        generations(decoded_in_blocks(masked.windows.active_block, refresh)[0])
        for refresh in (masked.windows.at_block_start, never)
    )
    assert kept != stale


@pytest.mark.parametrize("method", ["prompt_lookup", "fast_dllm_dual", "any_order"])
def test_decodes_are_the_same_with_64_bit_integers(method):
    recipe, implied = variants.resolve(method)
    predicts = "next" if method == "prompt_lookup" else "masked"
    model = toy.make_model(VOCAB, 16, predicts=predicts)

    def decoded():
        law = toy.chain(2, VOCAB, 16)
        prompt = prompts.from_rows([[0], [1, 2, 0, 1]], max_new_tokens=[6, 8])
        sizes = {**implied, "max_new_tokens": 8}
        return generations(
            run(recipe, model, law, prompt, jax.random.key(0), **sizes)[0]
        )

    narrow = decoded()
    with jax.enable_x64(True):
        assert decoded() == narrow


def masked_rule():
    from pdecode.rules import commit

    return commit.one_by_one(commit.order("max_prob"))


def test_prompt_lookup_drafts_what_a_plain_search_finds():
    def search(text, num_draft, max_ngram):
        for size in range(min(max_ngram, len(text) - 1), 0, -1):
            for end in range(size, len(text)):
                if text[end - size : end] == text[-size:]:
                    found = text[end : end + num_draft]
                    return found + [-1] * (num_draft - len(found))
        return [-1] * num_draft

    draw = np.random.default_rng(0)
    tokens = draw.integers(0, draw.integers(2, 7, (400, 1)), (400, 24))
    lengths = draw.integers(1, 25, 400)
    for num_draft, max_ngram in ((1, 1), (3, 2), (5, 3)):
        look = functools.partial(ngram.lookup, num_draft=num_draft, max_ngram=max_ngram)
        got = jax.vmap(look)(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths))
        expected = [
            search(row[:length].tolist(), num_draft, max_ngram)
            for row, length in zip(tokens, lengths)
        ]
        assert got.tolist() == expected
        # Both outcomes are among the rows.
        assert 0 < sum(row[0] >= 0 for row in expected) < len(expected)


def test_a_drafter_cache_equals_prefill_of_what_is_committed():
    """After the first call of a round, whatever the tree accepted before."""
    sampling = Sampling(1.0, banned=(VOCAB,))
    topology = trees.expand((3, 2))
    drafter = causal.draft_model(CAUSAL, topology, sampling)
    decoder = speculative.draft_verify(
        CAUSAL,
        drafter,
        max_new_tokens=5,
        sampling=sampling,
        acceptance=speculative_rule(topology),
    )
    prompt = prompts.from_rows([[0, 1, 2], [1], [2, 2]], max_new_tokens=5)
    keys = rng.row_keys(jax.random.key(4), prompt.row_ids)
    params = {"model": LAW, "drafter": LAW}
    state, _ = decoder.init(params, keys, prompt)
    step, draft = jax.jit(decoder.step), jax.jit(drafter.propose)
    accepted = 0
    for _ in range(3):
        state, info = step(params, keys, state)
        accepted += int(jnp.maximum(info.num_committed - 1, 0).sum())
        prefix = state.prefix
        _, after = draft(params, keys, state.drafter, prefix)
        keys_held = np.asarray(after.cache["keys"])[:, 0]
        for b in range(3):
            if bool(decoder.done(state)[b]):
                continue
            length = int(prefix.length[b])
            expected = np.stack(
                [np.asarray(prefix.tokens)[b, :length], np.arange(length)], -1
            )
            np.testing.assert_array_equal(keys_held[b, :length], expected)
    assert accepted > 0


def speculative_rule(topology):
    from pdecode.rules import accept

    return accept.by_node(accept.rejection(topology.max_children))


def test_probes_are_read_but_never_stored_or_accepted():
    """A lookahead-style drafter: two probe lanes guess ahead of a one-node draft."""
    seen = []

    def init(params, keys, prompt, prefix, output):
        return jnp.zeros(prompt.lengths.shape, jnp.int32)

    def propose(params, keys, state, prefix):
        batch = prefix.length.shape[0]
        tokens = jnp.stack([state, state * 0 + 1, state * 0 + 2], 1)
        parents = jnp.full((batch, 3), -1)
        offsets = jnp.broadcast_to(jnp.array([[1, 2, 3]]), (batch, 3))
        among = jnp.broadcast_to(
            jnp.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], bool)[None], (batch, 3, 3)
        )
        return Draft(tokens, parents, offsets, among), state

    def observe(params, keys, state, round):
        seen.append(round.output.hidden)
        return round.prediction.token[:, 3]

    drafter = Drafter(3, 1, init, propose, observe, num_probes=2)
    sampling = Sampling(1.0, banned=(VOCAB,))
    decoder = speculative.draft_verify(
        CAUSAL, drafter, max_new_tokens=4, sampling=sampling
    )
    prompt = prompts.from_rows([[0, 1], [2]], max_new_tokens=4)
    got, _ = decode(decoder, LAW, prompt, jax.random.key(1))
    expected, _ = decode(
        methods.autoregressive(CAUSAL, max_new_tokens=4, temperature=1.0),
        LAW,
        prompt,
        jax.random.key(1),
    )
    assert generations(got) == generations(expected)
    # The second probe of row 0 in the first round: root 1 at 1, probes 1 at 3, 2 at 4.
    keys = rng.row_keys(jax.random.key(1), prompt.row_ids)
    seen.clear()
    params = {"model": LAW}
    state, _ = decoder.init(params, keys, prompt)
    decoder.step(params, keys, state)
    law = np.exp(np.asarray(seen[0][0, 3, :VOCAB]))
    np.testing.assert_allclose(law, conditional({0: 0, 1: 1, 3: 1, 4: 2}, 5), atol=1e-5)


def test_guidance_keeps_two_caches():
    """Autoregression under guidance equals (1 + s) log p - s log p_null by hand."""
    scale = 0.7

    def null(query, prompt_lengths):
        in_prompt = query.positions < prompt_lengths[:, None]
        return query._replace(tokens=jnp.where(in_prompt, VOCAB, query.tokens))

    model = guidance.guided(CAUSAL, scale, null)
    prompt = prompts.from_rows([[0, 1], [2]], max_new_tokens=4)
    out, stats = decode(
        methods.autoregressive(model, max_new_tokens=4), LAW, prompt, jax.random.key(0)
    )
    assert stats.num_calls.tolist() == [8, 8]
    for row, generated in zip([[0, 1], [2]], generations(out)):
        known, free = dict(enumerate(row)), {}
        for place, token in enumerate(generated, len(row)):
            with np.errstate(divide="ignore"):
                mixed = (1 + scale) * np.log(conditional(known, place))
                mixed -= scale * np.log(conditional(free, place))
            assert mixed.argmax() == token
            known[place] = free[place] = token


def test_holes_in_a_prompt_are_filled_and_the_rest_kept():
    row = [0, VOCAB, 1, VOCAB, 2]
    holes = [False, True, False, True, False]
    prompt = prompts.from_rows([row], max_new_tokens=2, holes=[holes])
    law = {0: 0, 2: 1, 4: 2}
    out, stats = run(
        methods.llada, MASKED, LAW, prompt, jax.random.key(0),
        max_new_tokens=2, order="max_prob",
    )  # fmt: skip
    tokens = np.asarray(out.tokens)[0]
    assert [tokens[i] for i in (0, 2, 4)] == [0, 1, 2]
    assert VOCAB not in tokens[:7]
    assert stats.num_committed.tolist() == [4]
    best = max((conditional(law, p).max(), -p) for p in (1, 3, 5, 6))
    position = -best[1]  # one block of length 2 from the first hole, so 1 is in it
    if position < 3:
        assert tokens[position] == conditional(law, position).argmax()
    with pytest.raises(ValueError, match="holes"):
        run(methods.autoregressive, CAUSAL, LAW, prompt, jax.random.key(0),
            max_new_tokens=2)  # fmt: skip


def test_a_literal_mask_id_in_the_prompt_is_text():
    prompt = prompts.from_rows([[0, VOCAB, 1]], max_new_tokens=3)
    out, _ = run(
        methods.llada, MASKED, LAW, prompt, jax.random.key(0), max_new_tokens=3
    )
    tokens = np.asarray(out.tokens)[0]
    assert tokens[1] == VOCAB
    assert VOCAB not in tokens[3:]


# EOS where it is awkward: laws with all mass on one string.

EOS = 2
ENDING = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))


def forced(*strings):
    return toy.table(np.array(strings), np.ones(len(strings)) / len(strings))


AWKWARD = {
    "first": [0, 1, EOS, 0, 1, 0, 1, 0],
    "inside": [0, 1, 0, 0, EOS, 1, 1, 1],
    "last": [0, 1, 0, 1, 0, 1, 0, EOS],
    "never": [0, 1, 0, 1, 1, 0, 0, 1],
    "twice": [0, 1, 0, EOS, EOS, 1, 0, 1],
}


@pytest.mark.xdist_group("awkward")  # one program a method serves every place
@pytest.mark.parametrize("place", AWKWARD)
def test_eos_at_awkward_places(place):
    string = AWKWARD[place]
    law = forced(string)
    # The drafter knows the string too, so the EOS is drafted and accepted; the second
    # one never proposes it, so the EOS is a correction.
    other = forced([token if token != EOS else 1 for token in string])
    expected = string[2 : string.index(EOS)] if EOS in string else string[2:]
    prompt = prompts.from_rows([string[:2]], max_new_tokens=6)
    causal, pair = (ENDING,), (ENDING, ENDING)
    masked = (toy.make_model(VOCAB, LENGTH, predicts="masked", eos_ids=(EOS,)),)
    for method, models, params, sizes in [
        (methods.autoregressive, causal, law, {}),
        (
            methods.speculative_sampling,
            pair,
            {"model": law, "drafter": law},
            {"num_draft": 3},
        ),
        (
            methods.speculative_sampling,
            pair,
            {"model": law, "drafter": other},
            {"num_draft": 3},
        ),
        (methods.jacobi, causal, law, {"window": 4}),
        (methods.llada, masked, law, {"block_length": 3, "steps": 2}),
        (methods.any_order, masked, law, {"steps": 2}),
    ]:
        out, stats = run(
            method, models, params, prompt, jax.random.key(0), max_new_tokens=6, **sizes
        )
        assert generations(out) == [expected], (method.__name__, sizes)
        assert out.stopped_by.tolist() == [int(EOS in string)]
        assert stats.num_committed.tolist() == [len(expected) + (EOS in string)]


def test_an_eos_in_the_prompt_ends_nothing():
    string = [0, EOS, 1, 0, 1, 0, 1, 1]
    model = toy.make_model(VOCAB, LENGTH, eos_ids=(EOS,))
    prompt = prompts.from_rows([string[:3]], max_new_tokens=5)
    out, _ = run(
        methods.prompt_lookup, model, forced(string), prompt, jax.random.key(0),
        max_new_tokens=5,
    )  # fmt: skip
    assert generations(out) == [string[3:]]


def test_a_row_of_one_beside_a_row_of_thirty():
    law = toy.chain(0, VOCAB, 34)
    model = toy.make_model(VOCAB, 34)
    prompt = prompts.from_rows([[0], [1]], max_new_tokens=[1, 30])
    out, stats = run(
        methods.jacobi, model, law, prompt, jax.random.key(0), max_new_tokens=30
    )
    assert out.lengths.tolist() == [1, 30]
    assert stats.num_calls[0] == 1
    alone, alone_stats = run(
        methods.jacobi, model, law,
        prompts.from_rows([[1]], max_new_tokens=[30], row_ids=[1]), jax.random.key(0),
        max_new_tokens=30,
    )  # fmt: skip
    assert generations(out)[1] == generations(alone)[0]
    assert stats.num_calls[1] == alone_stats.num_calls[0]


def test_max_steps_cuts_short_and_says_so():
    out, stats = run(
        methods.autoregressive, CAUSAL, LAW, prompts.from_rows([[0]], max_new_tokens=6),
        jax.random.key(0), max_new_tokens=6, max_steps=2,
    )  # fmt: skip
    assert out.stopped_by.tolist() == [2]
    assert out.lengths.tolist() == [2]
    assert int(stats.num_steps) == 2


# Bad input: the value, the limit, the way out.


@pytest.mark.parametrize(
    "method, values, message",
    [
        (methods.llada, {"steps": 0}, "steps=0 must be at least 1"),
        (methods.llada, {"max_new_tokens": 0}, "max_new_tokens=0"),
        (methods.llada, {"block_length": 4, "steps": 6}, "must divide"),
        (methods.llada, {"block_length": 3, "steps": 3}, "multiple of the 2 blocks"),
        (methods.llada, {"temperature": -1.0}, r"temperature=-1.0 must lie in \[0"),
        (methods.llada, {"temperature": float("nan")}, "temperature=nan"),
        (methods.llada, {"order": "best"}, "order='best' must be one of"),
        (methods.llada, {"speed": 3}, "no knob or size 'speed'; known: "),
        (methods.fast_dllm, {"threshold": 1.5}, r"must lie in \[0, 1\]"),
        (methods.fast_dllm, {"threshold": 0.5, "factor": 1.0}, "set one of them"),
        (methods.any_order, {"order": "raster", "steps": 2}, "one position a step"),
        (methods.maskgit, {"steps": 2.5}, "must be a Python int"),
    ],
)
def test_bad_values_are_named(method, values, message):
    values = {"max_new_tokens": 6, **values}
    prompt = prompts.from_rows([[0]], max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        run(method, MASKED, LAW, prompt, jax.random.key(0), **values)


def test_bad_prompts_are_named():
    with pytest.raises(ValueError, match="empty"):
        prompts.from_rows([], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"id 9, outside \[0, 4\)"):
        prompts.from_rows([[0, 9]], max_new_tokens=1, model=CAUSAL)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        prompts.from_rows([[0]], max_new_tokens=0)
    with pytest.raises(ValueError, match="has 8"):
        run(
            methods.autoregressive, CAUSAL, LAW,
            prompts.from_rows([[0]], max_new_tokens=8),
            jax.random.key(0), max_new_tokens=8,
        )  # fmt: skip


def test_wants_are_checked():
    with pytest.raises(ValueError, match="no leaf of Prediction"):
        vocab_head.check_wants(("confidence",))
    with pytest.raises(ValueError, match="of=None"):
        vocab_head.statistics(
            vocab_head.Head(jnp.eye(3)), jnp.ones((1, 1, 3)), ("of_log_prob",),
            Sampling(),
        )  # fmt: skip
    assert ignore(None, None, "state", None) == "state"


def test_a_drafter_records_target_taps_of_what_was_accepted():
    """EAGLE-like: its own cache of target features holds just the committed prefix."""
    max_depth = 2
    tapped = CAUSAL._replace(
        apply=lambda params, query, cache: _with_tap(
            *CAUSAL.apply(params, query, cache)
        ),
        taps=("feature",),
    )
    inner = causal.draft_model(
        CAUSAL, trees.expand((2, 2)), Sampling(1.0, banned=(VOCAB,))
    )

    def init(params, keys, prompt, prefix, output):
        batch, slots = prefix.tokens.shape
        features = jnp.zeros((batch, 1, slots, VOCAB + 1))
        pending = jnp.zeros((batch, 1, 1 + max_depth, VOCAB + 1))
        nowhere = jnp.full((batch, 1 + max_depth), slots)
        state = inner.init(params, keys, prompt, prefix, output)
        return state, features, pending, nowhere

    def propose(params, keys, state, prefix):
        state, features, pending, slots = state
        features = caches.write(features, slots, pending)
        draft, state = inner.propose(params, keys, state, prefix)
        return draft, (state, features, pending, slots)

    def observe(params, keys, state, round):
        state, features, _, _ = state
        lanes = jnp.concatenate([jnp.zeros_like(round.path[:, :1]), round.path], 1)
        tap = jnp.take_along_axis(round.output.taps["feature"], lanes[..., None], 1)
        place = jnp.arange(1 + max_depth)[None]
        root = round.prefix.length[:, None] - 1
        is_kept = place <= round.num_accepted[:, None]
        slots = jnp.where(is_kept, root + place, features.shape[2])
        return state, features, tap[:, None], slots

    drafter = inner._replace(init=init, propose=propose, observe=observe)
    decoder = speculative.draft_verify(
        tapped,
        drafter,
        max_new_tokens=5,
        sampling=Sampling(1.0, banned=(VOCAB,)),
        acceptance=speculative_rule(trees.expand((2, 2))),
    )
    prompt = prompts.from_rows([[0, 1, 2], [1], [2, 2]], max_new_tokens=5)
    keys = rng.row_keys(jax.random.key(2), prompt.row_ids)
    params = {"model": LAW, "drafter": LAW}
    state, _ = decoder.init(params, keys, prompt)
    step, draft = jax.jit(decoder.step), jax.jit(drafter.propose)
    accepted = 0
    for _ in range(2):
        state, info = step(params, keys, state)
        accepted += int(jnp.maximum(info.num_committed - 1, 0).sum())
        prefix = state.prefix
        _, after = draft(params, keys, state.drafter, prefix)
        features = np.exp(np.asarray(after[1])[:, 0])
        for b in range(3):
            if bool(decoder.done(state)[b]):
                continue
            row = np.asarray(prefix.tokens)[b]
            # What the prefill covered was not tapped; the root is still to come.
            for slot in range(int(prefix.prompt_end[b]) - 1, int(prefix.length[b]) - 1):
                law = conditional(dict(enumerate(row[: slot + 1])), slot + 1)
                np.testing.assert_allclose(features[b, slot, :VOCAB], law, atol=1e-5)
    assert accepted > 0


def _with_tap(output, cache):
    return output._replace(taps={"feature": output.hidden}), cache
