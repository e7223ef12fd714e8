"""MTP's modules: the loss, what learns, what a chain of them is, what is accepted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow

from pdecode import methods, prompts, rng
from pdecode.contracts import DraftModules, Sampling
from pdecode.decode import run
from pdecode.drafters import modules as drafters
from pdecode.families import speculative
from pdecode.models import draft_modules, toy, transformer
from pdecode.models.config import Config
from pdecode.rules import relaxed
from pdecode.train import TrainConfig, passes
from pdecode.train.objectives import mtp

SMALL = Config(
    vocab_size=7, width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=12,
    tied=True, mask_id=6,
)  # fmt: skip
MODEL = transformer.make_model(SMALL)
TARGET = transformer.init(SMALL, jax.random.key(0))
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
FROZEN = {"target": TARGET}


def params_of(shared=False):
    """Large weights: the laws differ from token to token."""
    own = draft_modules.init(SMALL, jax.random.key(1), 3, shared)
    return jax.tree.map(lambda leaf: 2 * leaf + 0.1, own)


def config(**options):
    return TrainConfig(
        name="x", model=SMALL, objective="mtp", steps=1, warmup_steps=0, row_len=6,
        frozen={"target": "target"}, options={"num_modules": 3, **options},
    )  # fmt: skip


@jax.jit
def hidden_at(tokens):
    return passes.hidden(passes.Pass(SMALL), TARGET, tokens)


def hidden_of(tokens):
    """States [n, E]; one shape, as what lies behind changes none of them."""
    whole = np.pad(np.asarray(tokens, np.int32), (0, 30 - len(tokens)))
    return np.asarray(hidden_at(whole[None]))[0, : len(tokens)]


def by_hand(own, tokens, shared=False, count=3):
    """Logs [count][n] of each module's law at each place that has its token."""
    own, table = jax.tree.map(np.asarray, own), np.asarray(TARGET["embed"])
    states, found = hidden_of(tokens), []
    for index in range(count):
        module = own["module_0" if shared else f"module_{index}"]
        states = states[: len(tokens) - 1 - index]
        read = table[list(tokens[1 + index :])]
        weight = {name: module[name]["weight"] for name in ("state_norm", "token_norm")}
        joined = np.concatenate(
            [slow.rms(states, weight["state_norm"]),
             slow.rms(read, weight["token_norm"])], 1
        )  # fmt: skip
        states = slow.layer(module["layer"], joined @ module["fc"]["kernel"], 1 + index)
        normed = slow.rms(states, module["norm"]["weight"])
        found.append([slow.logs(table @ x, SMALL.mask_id) for x in normed])
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_the_loss_is_the_papers_by_hand(shared):
    own = params_of(shared)
    assert set(own) == ({"module_0"} if shared else {f"module_{k}" for k in range(3)})
    loss = jax.jit(mtp.loss(config(shared=shared, step_decay=0.5)))
    value, aux = loss(own, FROZEN, {"tokens": jnp.asarray(TOKENS)}, None, 0)
    total, rows = 0.0, 0
    for row, tokens in enumerate(TOKENS):
        logs = by_hand(own, tokens, shared)
        for place in range(5):
            rows += place + 2 < 6
            for index in range(3):
                wanted = place + 2 + index
                assert bool(aux["scored"][row, place, index]) == (wanted < 6)
                if wanted < 6:
                    nats = -logs[index][place][tokens[wanted]]
                    total += nats * 0.5**index / 1.75
                    np.testing.assert_allclose(
                        aux["nats"][row, place, index], nats, rtol=1e-3, atol=1e-4
                    )
    assert rows == aux["weight"] == 8
    np.testing.assert_allclose(value, total / rows, rtol=1e-4)


def test_the_modules_learn_and_nothing_else():
    batch = {"tokens": jnp.asarray(TOKENS)}

    def of(own, frozen):
        return mtp.loss(config())(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(params_of(), FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def test_a_module_reads_the_token_that_is_its_own_number_further_on():
    """The last token that a guess may see changes it, and no later one does."""
    own, options = params_of(), config().options
    guess = jax.jit(lambda tokens: mtp.guessed(SMALL, options, own, TARGET, tokens)[0])
    before = guess(jnp.asarray(TOKENS))
    for index in range(3):
        for place in range(3 - index):
            for at, is_seen in ((place + 1 + index, True), (place + 2 + index, False)):
                other = TOKENS.copy()
                other[:, at] = (other[:, at] + 1) % 6
                after = guess(jnp.asarray(other))
                gap = np.abs(after[:, place, index] - before[:, place, index])
                assert (gap.max() > 1e-3) == is_seen


# What is drafted, against a drafter that keeps nothing and reads everything anew.

PROMPT = prompts.from_rows([[1, 4, 0], [3], [2, 2, 5, 1, 0, 4, 4, 1]], max_new_tokens=9)
LONG = PROMPT._replace(max_new_tokens=jnp.full(3, 20))
RECORD = draft_modules.make_modules(SMALL, 3)
PARAMS = {"model": TARGET, "modules": params_of()}


def chain_by_hand(committed):
    tokens = list(committed)
    for index in range(3):
        logs = by_hand(PARAMS["modules"], tokens, count=index + 1)[index]
        tokens.append(int(np.argmax(logs[len(committed) - 2])))
    return tokens[len(committed) :]


def wrong_drafts(drafter):
    """Drafts that are not those by hand, and how many tokens a round committed.

    A token passes if it is among the target's best four, so that many do.
    """
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=20, sampling=Sampling(1.0),
        acceptance=relaxed.top_match(4),
    )  # fmt: skip
    wrong, sizes = 0, []
    for draft, rows in slow.rounds(decoder, PARAMS, LONG, jax.random.key(5)):
        for row, committed in enumerate(rows):
            if len(committed) > 1:  # nothing stands before the first token
                wrong += draft.tokens[row].tolist() != chain_by_hand(committed)
        sizes.append([len(row) for row in rows])
    return wrong, np.diff(sizes, axis=0)


def test_chains_are_those_of_a_drafter_that_keeps_nothing():
    wrong, sizes = wrong_drafts(drafters.chain(MODEL, RECORD, 3))
    assert wrong == 0
    assert {1, 4} <= set(np.ravel(sizes))  # no draft was accepted, and all


def test_features_in_the_wrong_place_are_caught():
    """Negative control: the states before the slots one slot too early."""
    right = drafters.chain(MODEL, RECORD, 3)

    def observe(params, keys, state, round):
        after = right.observe(params, keys, state, round)
        return after._replace(features=jnp.roll(after.features, -1, 1))

    assert wrong_drafts(right._replace(observe=observe))[0] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_another(temperature):
    common = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **common)
    ahead, _ = run(
        methods.mtp, (MODEL, RECORD), PARAMS, PROMPT, key, num_draft=3, **common
    )
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    other, _ = run(
        methods.autoregressive, MODEL, TARGET, PROMPT, jax.random.key(2), **common
    )
    assert (np.asarray(other.tokens) == plain.tokens).all() == (temperature == 0)


def test_the_prefill_counts_the_calls_and_lanes_that_there_are():
    """Two modules read ten tokens but the last: 2 calls of 9 lanes. Of one, none."""
    lanes = []

    def apply(own, target, index, query, cache):
        lanes.append(query.tokens.shape[1])
        return RECORD.apply(own, target, index, query, cache)

    drafter = drafters.chain(MODEL, RECORD._replace(apply=apply), 2)
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=4, sampling=Sampling(1.0)
    )
    ten, one = [0, 1, 2, 3, 4, 5, 4, 3, 2, 1], [3]
    for texts, fed, calls, asked, computed in (
        ([ten], [9, 9], [2], [18], [18]),
        ([one], [], [0], [0], [0]),
        ([ten, one], [9, 9], [2, 0], [18, 0], [18, 18]),
    ):
        prompt, lanes[:] = prompts.from_rows(texts, max_new_tokens=4), []
        keys = rng.row_keys(jax.random.key(0), prompt.row_ids)
        _, info = decoder.init(PARAMS, keys, prompt)
        assert lanes == fed
        assert info.num_draft_calls.tolist() == calls
        assert info.num_draft_tokens.tolist() == asked
        assert info.num_draft_tokens_computed.tolist() == computed


# Modules that know the next token: the toy's own model, which needs no state.

LENGTH = 20
LAW = toy.chain(3, 4, LENGTH, sharpness=3.0)
TOY = toy.make_model(4, LENGTH)


def _perfect(params, target, index, query, cache):
    # Its slot s holds token s + index: what the model needs is in slots of module 0.
    query = query._replace(extra=None, positions=query.positions)
    output, cache = TOY.apply(target, query, cache)
    return output.hidden, cache


def test_modules_that_are_right_have_their_whole_depth_accepted():
    """A Markov law needs the last token alone, which each module has."""
    perfect = DraftModules(
        3, TOY.init_cache, _perfect,
        lambda params, target, index, states: (states, TOY.head(target)), width=5,
    )  # fmt: skip
    prompt = prompts.from_rows([[0, 1], [2, 1], [3, 3, 1]], max_new_tokens=12)
    _, stats = run(
        methods.mtp, (TOY, perfect), {"model": LAW, "modules": ()}, prompt,
        jax.random.key(0), max_new_tokens=12, num_draft=3,
    )  # fmt: skip
    assert stats.num_calls.tolist() == [3, 3, 3]  # 3 drafted and 1 more a call
    assert stats.num_draft_calls.tolist() == [9, 9, 9]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"num_draft=4 must lie in 1 \.\. 3"):
        drafters.chain(MODEL, RECORD, 4)
    with pytest.raises(ValueError, match="num_modules=0"):
        draft_modules.make_modules(SMALL, 0)
    shifted = dataclasses.replace(SMALL, attention="bidirectional", shift=True)
    with pytest.raises(ValueError, match="shift=True"):
        draft_modules.make_modules(shifted, 1)
