"""Logit processing of next-token decoding: against plain loops, alone and in drafts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import prompts, trees
from pdecode.contracts import Sampling, View
from pdecode.decode import decode
from pdecode.drafters import causal, grown, guesses, iterates, nothing, paced
from pdecode.families import speculative
from pdecode.models import toy
from pdecode.rules import accept, lenses

VOCAB, LENGTH, NEW = 4, 20, 12
TARGET = toy.chain(5, VOCAB, LENGTH)
NEAR = toy.mixed(TARGET, toy.chain(6, VOCAB, LENGTH), 0.3)
MODEL = toy.make_model(VOCAB, LENGTH)
PROMPT = prompts.from_rows(
    [[0, 1], [2], [3, 3, 1], [1]], max_new_tokens=[12, 10, 12, 12]
)

# After a 0 only 1 or 2, after that anything but the same again; 3 is always allowed.
MOVES = np.array(
    [[1, 2, 2, 0, 0], [-1, 2, 2, 0, 0], [1, -1, 2, 0, 0], [0, 0, 0, 0, 0]], np.int32
)
LENSES = {
    "repetition": lenses.repetition_penalty(1.7),
    "repetition_new": lenses.repetition_penalty(1.7, with_prompt=False),
    "presence": lenses.presence_penalty(0.8, 0.4),
    "min_p": lenses.min_p(0.3),
    "ban": lenses.ban((1, 3)),
    "force": lenses.force({0: 2, 3: 0}),
    "grammar": lenses.grammar(MOVES),
}


def slowly(name, logits, text, prompt_end):
    """The same on lists, for the position behind `text`."""
    out, new = list(logits), text[prompt_end:]
    if name.startswith("repetition"):
        for token in set(text if name == "repetition" else new):
            out[token] = out[token] / 1.7 if out[token] > 0 else out[token] * 1.7
    if name == "presence":
        for token in set(new):
            out[token] -= 0.8 + 0.4 * new.count(token)
    if name == "min_p":
        least = max(out) + np.log(0.3)
        out = [each if each >= least else -1e30 for each in out]
    if name == "ban":
        out[1] = out[3] = -1e30
    if name == "force" and len(new) in (0, 3):
        only = {0: 2, 3: 0}[len(new)]
        out = [out[t] if t == only else -1e30 for t in range(len(out))]
    if name == "grammar":
        state = 0
        for token in new:
            state = MOVES[state, token] if MOVES[state, token] >= 0 else state
        out = [out[t] if MOVES[state, t] >= 0 else -1e30 for t in range(len(out))]
    return out


@pytest.mark.parametrize("name", LENSES)
def test_a_lens_is_what_a_plain_loop_does(name):
    gen = np.random.default_rng(0)
    moved = 0
    look = jax.jit(lambda *args: LENSES[name].apply(None, *args, ())[0])
    for _ in range(30):
        size = int(gen.integers(1, 9))
        end = int(gen.integers(1, size + 1))
        text = gen.integers(0, VOCAB, size).tolist()
        logits = gen.normal(size=VOCAB + 1).astype(np.float32)
        logits[VOCAB] = -1e30  # what is banned stays so
        junk = gen.integers(0, VOCAB, 10 - size).tolist()  # not to be read
        view = View(
            jnp.array(text + junk), jnp.arange(10) < size, jnp.array(size),
            jnp.array(end),
        )  # fmt: skip
        got = look(view, jnp.asarray(logits))
        slow = np.array(slowly(name, logits, text, end), np.float32)
        slow[VOCAB] = min(slow[VOCAB], -1e30) if got[VOCAB] <= -1e29 else 0.0
        np.testing.assert_allclose(got, np.maximum(slow, -1e30), rtol=1e-6)
        moved += not np.allclose(got, logits)
    assert moved > 5


@functools.partial(jax.jit, static_argnames="decoder")
def run(decoder, key):
    params = {"model": TARGET, "drafter": NEAR}
    return decode(decoder, params, PROMPT, key)


@functools.cache
def decoder_of(drafter, lens, acceptance="match"):
    return speculative.draft_verify(
        MODEL, drafter, max_new_tokens=NEW, sampling=Sampling(1.0),
        acceptance=acceptance, lenses=(lens,),
    )  # fmt: skip


CHAIN, TREE = (trees.chain(2), "coupled"), (trees.expand((2, 1)), "with_replacement")
EVERY = [
    pytest.param(
        name, draft, id=f"{name}-{draft[1]}",
        marks=() if (name, draft) == ("presence", TREE) else pytest.mark.thorough,
    )
    for name in LENSES
    for draft in (CHAIN, TREE)
]  # fmt: skip


@pytest.mark.parametrize("name, draft", EVERY)
def test_drafts_under_a_lens_give_plain_sampling_under_it(name, draft):
    """Each node's law is that of its own context, in chains and in trees."""
    topology, draws = draft
    lens = LENSES[name]
    drafter = causal.draft_model(
        MODEL, topology, Sampling(1.0), lenses=(lens,), draws=draws
    )
    decoder = decoder_of(drafter, lens)
    saved = 0
    for seed in range(10):
        out, stats = run(decoder, jax.random.key(seed))
        plain, _ = run(decoder_of(nothing(), lens), jax.random.key(seed))
        np.testing.assert_array_equal(out.tokens, plain.tokens)
        obeys(name, out)
        saved += int((stats.num_committed - stats.num_calls).sum())
    assert saved > 0


def obeys(name, out):
    for row in range(4):
        start, length = int(out.start[row]), int(out.lengths[row])
        text = np.asarray(out.tokens[row, : start + length]).tolist()
        for place in range(start, start + length):
            allowed = slowly(name, [0.0] * (VOCAB + 1), text[:place], start)
            assert allowed[text[place]] > -1e29


def test_rejection_under_a_lens_is_lossless_in_law():
    """p and q both through the lens, by enumeration of what is emitted first."""
    lens = LENSES["presence"]
    drafter = causal.draft_model(MODEL, trees.chain(1), Sampling(1.0), lenses=(lens,))
    rule = accept.by_node(accept.rejection())
    decoder = decoder_of(drafter, lens, rule)
    wide = prompts.from_rows([[0]] * 4000, max_new_tokens=2)

    @functools.partial(jax.jit, static_argnames="decoder")
    def outcomes(decoder, key):
        params = {"model": TARGET, "drafter": NEAR}
        out, _ = decode(decoder, params, wide, key)
        codes = (out.tokens[:, 1:3] * jnp.array([[4, 1]])).sum(1)
        return jnp.zeros(16, jnp.int32).at[codes].add(1)

    law = np.zeros(16)
    moves = np.asarray(TARGET.moves)
    for code in range(16):
        text = [0]
        mass = 1.0
        for nth in range(2):
            place = len(text)
            row = np.log(moves[place, place][text[-1]])
            row = np.array(slowly("presence", row, text, 1))
            row = np.exp(row - row.max())
            token = code // 4 ** (1 - nth) % 4
            mass *= row[token] / row.sum()
            text.append(token)
        law[code] = mass
    law /= law.sum()

    def off(decoder):
        total = sum(np.asarray(outcomes(decoder, jax.random.key(s))) for s in range(6))
        return 0.5 * np.abs(total / total.sum() - law).sum()

    draws = np.random.default_rng(0).multinomial(24000, law, 2000) / 24000
    floor = np.quantile(0.5 * np.abs(draws - law).sum(1), 0.999)
    assert off(decoder) < floor

    # Negative control: the lens of the position behind the prompt for all.
    def behind(params, view, logits, memory):
        early = view._replace(position=jnp.minimum(view.position, 1))
        return lens.apply(params, early, logits, memory)

    late = lens._replace(apply=behind)
    assert off(decoder_of(drafter, late, rule)) > floor


def test_bad_lenses_are_named():
    for make, message in (
        (lambda: lenses.ban(()), "bans nothing"),
        (lambda: lenses.force({}), "at least one"),
        (lambda: lenses.force({-1: 2}), "from 0"),
        (lambda: lenses.grammar(np.array([[1, -1], [-1, -1]])), "allows no token"),
        (lambda: lenses.grammar(np.array([[5, 0]])), "must lie in"),
        (lambda: lenses.grammar(np.array([[0, 0]]), start=3), "start=3"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    # An end that every state allows saves a grammar from its dead end.
    lenses.grammar(np.array([[1, -1], [-1, -1]]), ends=(1,))


PRICES = paced.Prices((1.0,) * 6, 0.0)
DRAFTERS = {
    "chain": lambda lens: causal.draft_model(
        MODEL, trees.chain(3), Sampling(1.0), lenses=(lens,)
    ),
    "grown": lambda lens: grown.grown_tree(
        MODEL, 8, width=3, max_depth=3, lenses=(lens,)
    ),
    "paced": lambda lens: paced.draft_model(
        MODEL, (0, 1, 3), PRICES, Sampling(1.0), lenses=(lens,)
    ),
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_node_is_drafted_in_its_own_context(name):
    """No drafted path breaks the grammar; with the lens of the root alone some do."""

    def broken(lens):
        found, num = 0, 0
        for tokens, parents, text, start in drafted(DRAFTERS[name](lens)):
            for node, token in enumerate(tokens):
                path, above = [], parents[node]
                while above >= 0:
                    path.append(tokens[above])
                    above = parents[above]
                told = slowly("grammar", [0.0] * 5, text + path[::-1], start)
                num += token >= 0
                found += token >= 0 and told[token] < -1e29
        assert num > 20
        return found

    lens = LENSES["grammar"]
    assert broken(lens) == 0

    def at_root(params, view, logits, memory):
        known = view.known & (jnp.arange(view.known.shape[0]) <= view.prompt_end)
        return lens.apply(params, view._replace(known=known), logits, memory)

    assert broken(lens._replace(apply=at_root)) > 0


def drafted(drafter):
    """(tokens, parents, text, prompt end) of the first draft of rows of two lengths."""
    plan = speculative.checked(MODEL, drafter, NEW, Sampling(1.0), "match", ())
    params = {"model": TARGET, "drafter": NEAR}

    @jax.jit
    def first(keys):
        state, _ = speculative.init(plan, params, keys, PROMPT)
        tokens = state.prefix.tokens.at[:, 3].set(jnp.array([1, 0, 2, 0]))
        # A generated token or three stand behind the prompts.
        prefix = state.prefix._replace(tokens=tokens, length=jnp.full(4, 4))
        inner = drafter.init(params, keys, PROMPT, prefix, None)
        return drafter.propose(params, keys, inner, prefix)[0], prefix

    for seed in range(4):
        draft, prefix = first(jax.random.split(jax.random.key(seed), 4))
        for b in range(4):
            yield (
                draft.tokens[b].tolist(),
                draft.parents[b].tolist(),
                prefix.tokens[b, :4].tolist(),
                int(prefix.prompt_end[b]),
            )


def test_guesses_that_tell_the_law_without_a_lens_are_refused():
    """Their q would not be what they were drawn from."""
    lens = LENSES["presence"]
    with pytest.raises(ValueError, match="from the target's states as they are"):
        decoder_of(
            iterates.iterate(MODEL, 2, Sampling(1.0), transport=guesses.maximal()),
            lens,
            accept.by_node(accept.rejection()),
        )
    decoder_of(iterates.iterate(MODEL, 2, Sampling(1.0)), lens)
