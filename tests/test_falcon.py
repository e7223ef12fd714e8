"""Falcon's block layer: glances and loss, what learns, and what is drafted from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_eagle import rotated, rounds
from test_jakiro import MODEL, SMALL, TARGET, TOKENS, hidden_of, logs_of

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import Sampling
from pdecode.decode import run
from pdecode.drafters import blocks
from pdecode.families import speculative
from pdecode.models import falcon_layers
from pdecode.train import TrainConfig
from pdecode.train.objectives import falcon as objective

# Large weights: its laws differ from token to token.
OWN = jax.tree.map(
    lambda leaf: 2 * leaf + 0.05, falcon_layers.init(SMALL, jax.random.key(1))
)
LAYER = falcon_layers.make_layer(SMALL)
PARAMS = {"model": TARGET, "block_layer": OWN}
FROZEN = {"target": TARGET}
HANDS = jax.tree.map(np.asarray, OWN)


def squashed(x):
    return 1 / (1 + np.exp(-x))


def streams_by_hand(tokens, read):
    """[n, 8] of an LSTM of two layers along a text."""
    table, out = np.asarray(TARGET["embed"]), []
    state, carried = np.zeros((2, 8)), np.zeros((2, 8))
    for token, feature in zip(tokens, np.asarray(read)):
        x = np.concatenate([table[token], feature])
        for index in range(2):
            cell = HANDS[f"lstm_{index}"]
            gates = x @ cell["input"]["kernel"] + cell["input"]["bias"]
            gates = gates + state[index] @ cell["state"]["kernel"]
            enter, keep, new, leave = np.split(gates, 4)
            carried[index] = squashed(keep) * carried[index]
            carried[index] += squashed(enter) * np.tanh(new)
            state[index] = x = squashed(leave) * np.tanh(carried[index])
        out.append(x)
    return np.array(out).reshape(-1, 8)


def attended_by_hand(asked, asked_at, streams, places):
    """Features of streams at positions that see all of `streams`."""
    block, found = HANDS["layer_0"], []
    kernel = {name: leaf["kernel"] for name, leaf in block["attention"].items()}
    keys = [rotated((x @ kernel["key"]).reshape(1, 4), p)[0]
            for x, p in zip(streams, places)]  # fmt: skip
    for x, position in zip(asked, asked_at):
        query = rotated((x @ kernel["query"]).reshape(2, 4), position)
        score = query @ np.stack(keys).T / 2  # sqrt(4)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        x = x + (weight @ (streams @ kernel["value"])).reshape(-1) @ kernel["out"]
        normed = x / np.sqrt((x**2).mean() + 1e-6) * block["mlp_norm"]["weight"]
        mlp = {name: leaf["kernel"] for name, leaf in block["mlp"].items()}
        gate = normed @ mlp["gate"]
        found.append(x + (gate * squashed(gate) * (normed @ mlp["up"])) @ mlp["down"])
    return np.array(found)


def lanes_by_hand(tokens, read):
    """What every lane of a row says, in blocks of two from the first on."""
    streams, found = streams_by_hand(tokens, read), []
    for lane in range(len(tokens)):
        seen = streams[: (lane // 2 + 1) * 2]
        places = 1 + np.arange(len(seen))
        found += [*attended_by_hand(streams[lane : lane + 1], [1 + lane], seen, places)]
    return np.array(found)


CONFIG = TrainConfig(
    name="x", model=SMALL, objective="falcon", steps=10, warmup_steps=0, row_len=6,
    frozen={"target": "target"},
    options={"law_weight": 0.3, "glance_start": 1.0, "glance_end": 0.5},
)  # fmt: skip
ORDER = np.array([[0.3, 0.1, 0.2], [0.1, 0.3, 0.2]], np.float32)
BATCH = {
    "tokens": jnp.asarray(TOKENS),
    "glance_order": jnp.asarray(ORDER),
    "glance_run": jnp.ones((2, 3), jnp.int32),
}


@pytest.mark.parametrize("step", [0, 8])
def test_the_loss_is_the_papers_by_hand(step):
    """At step 0 all that is wrong is glanced at, at step 8 of 10 six tenths of it."""
    value, aux = jax.jit(objective.loss(CONFIG))(OWN, FROZEN, BATCH, None, step)
    rate, terms, glances = 0.5 + 0.5 * (1 - step / 10), [], 0
    for row, tokens in enumerate(TOKENS):
        true = hidden_of(tokens)
        lanes, read = tokens[1:].copy(), true[:-1].copy()
        first = lanes_by_hand(lanes, read)
        last = 3  # lanes 0, 1, 2: the third behind them is in the row
        wrong = sum(
            np.argmax(logs_of(first[lane])) != np.argmax(logs_of(true[lane + 2]))
            for lane in range(last)
        )
        # Of the two blocks that begin with a scored lane the second has but one.
        chosen = [b for b in np.argsort(ORDER[row]) if b == 0][: int(wrong * rate)]
        for block in chosen:
            lanes[2 * block], read[2 * block] = tokens[3], true[2]
        glances += len(chosen)
        found = lanes_by_hand(lanes, read)
        for lane in range(last):
            mine = logs_of(first[lane])
            np.testing.assert_allclose(
                aux["nats"][row, lane], -mine[tokens[lane + 3]], rtol=1e-3
            )
            if lane % 2 == 0 and lane // 2 in chosen:
                continue
            gap = np.abs(found[lane] - true[lane + 2])
            far = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
            its, mine = logs_of(true[lane + 2]), logs_of(found[lane])
            cool = [each / 0.95 - np.log(np.exp(each / 0.95).sum())
                    for each in (its, mine)]  # fmt: skip
            soft = (np.exp(cool[0]) * (cool[0] - cool[1]))[:6].sum()
            terms.append(far + 0.3 * (0.9 * soft - 0.1 * mine[np.argmax(its)]))
    assert glances == 2 and aux["weight"] == len(terms) == 4
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-4)
    assert aux["places"].tolist() == [3, 4, 5, 6, 7] and aux["scored"].sum() == 6


def test_without_glances_it_is_one_pass_and_with_all_every_block_has_one():
    wrong, scored = np.ones((2, 9), bool), np.ones((2, 9), bool)
    order = {"glance_order": jnp.arange(10.0).reshape(2, 5) / 10}
    order["glance_run"] = jnp.ones((2, 5), jnp.int32)
    own = objective.Options()
    for rate, expected in ((0.0, 0), (2 / 9, 2), (1.0, 5)):
        found = np.asarray(objective.glanced(wrong, scored, order, rate, own))
        assert (found.sum(1) == expected).all() and not found[:, 1::2].any()
    long = objective.Options(block_len=3)
    order = {"glance_order": order["glance_order"][:, :3], "glance_run": 2}
    order["glance_run"] = jnp.asarray([[2, 1, 2], [1, 1, 1]])
    found = np.asarray(objective.glanced(wrong, scored, order, 1.0, long))
    assert found.tolist()[0] == [True, True, False, True, False, False] + [
        True, True, False,
    ]  # fmt: skip


def test_the_layer_learns_and_nothing_else():
    def of(own, frozen):
        return objective.loss(CONFIG)(own, frozen, BATCH, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OWN, FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path
    drawn = objective.noise(CONFIG)({"tokens": BATCH["tokens"]}, jax.random.key(0))
    assert drawn["glance_order"].shape == (2, 3) and (drawn["glance_run"] == 1).all()


# What is drafted, against a drafter that keeps nothing and reads everything anew.


def said_by_hand(committed, path, features):
    """The last two lanes' answers behind committed tokens and a drafted path."""
    root = len(committed) - 1
    true = hidden_of(committed)
    if root == 0:  # nothing stands before the first token
        text, first = streams_by_hand(committed, np.zeros((1, 8))), 0
        drafted = streams_by_hand(path, features)
    else:
        both = np.concatenate([true[:-1], np.reshape(features, (-1, 8))])
        text, first = streams_by_hand([*committed[1:], *path], both), 1
        drafted = text[:0]
    streams = np.concatenate([text, drafted])
    places = first + np.arange(len(streams))
    # A lane before the text is empty.
    asked = np.concatenate([np.zeros((2, 8)), streams])[-2:]
    at = np.maximum([places[-1] - 1, places[-1]], 0)
    return attended_by_hand(asked, at, streams, places)


def tree_by_hand(topology, committed):
    tokens, paths = [], []
    for node, parent in enumerate(topology.parents):
        nth = topology.parents[:node].count(parent)
        path = paths[parent] if parent >= 0 else []
        whole, known = len(path) // 2 * 2, []
        said = said_by_hand(committed, [], [])
        for end in range(0, whole, 2):
            known += [*said]
            said = said_by_hand(committed, path[: end + 2], known)
        order = np.argsort(-logs_of(said[len(path) - whole]), kind="stable")
        tokens.append(int(order[nth]))
        paths.append([*path, tokens[-1]])
    return tokens


TREE = trees.choices(
    [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 0, 0),
     (1, 0, 1, 0), (0, 0, 0, 0, 0), (1, 0, 1, 0, 0), (1, 0, 1, 0, 1)]
)  # fmt: skip


@pytest.mark.parametrize("topology", [trees.chain(3), TREE], ids=["chain", "tree"])
def test_drafts_are_those_of_a_drafter_that_keeps_nothing(topology):
    drafter = blocks.static_tree(MODEL, LAYER, topology)
    accepted = 0
    for draft, rows in rounds(drafter, 3, MODEL, PARAMS):
        for row, committed in enumerate(rows):
            assert draft.tokens[row].tolist() == tree_by_hand(topology, committed)
        accepted += sum(map(len, rows))
    assert accepted > 3 * 9 + 3  # several tokens of a draft were kept at once


def test_a_memory_that_stays_behind_is_caught():
    """Negative control: the recurrent part forgets what was accepted."""
    right = blocks.static_tree(MODEL, LAYER, TREE)

    def observe(params, keys, state, round):
        after = right.observe(params, keys, state, round)
        return after._replace(memory=0 * after.memory)

    wrong = 0
    for draft, rows in rounds(right._replace(observe=observe), 3, MODEL, PARAMS):
        for row, committed in enumerate(rows):
            wrong += draft.tokens[row].tolist() != tree_by_hand(TREE, committed)
    assert wrong > 0


PROMPT = prompts.from_rows([[1, 4, 0], [3], [2, 2, 5, 1, 0]], max_new_tokens=9)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_another(temperature):
    sizes = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **sizes)
    ahead, stats = run(
        methods.falcon, (MODEL, LAYER), PARAMS, PROMPT, key, branching=(3, 2, 1, 1),
        **sizes,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_calls.sum() < 27
    np.testing.assert_array_equal(stats.num_draft_calls, 2 * stats.num_calls)


def test_the_prefill_counts_the_calls_and_lanes_that_there_are():
    """Of ten tokens neither the first nor the last is fed: 8 lanes. Of two, none."""
    lanes = []

    def apply(own, query, cache):
        lanes.append(query.tokens.shape[1])
        return LAYER.apply(own, query, cache)

    drafter = blocks.static_tree(MODEL, LAYER._replace(apply=apply), trees.chain(3))
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=4, sampling=Sampling(1.0)
    )
    ten = [0, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    for texts, fed, calls, computed in (
        ([ten], [8], [1], [8]),
        ([ten[:2]], [], [0], [0]),
        ([ten[:1]], [], [0], [0]),
        ([ten, ten[:1]], [8], [1, 0], [8, 8]),
    ):
        prompt, lanes[:] = prompts.from_rows(texts, max_new_tokens=4), []
        keys = rng.row_keys(jax.random.key(0), prompt.row_ids)
        _, info = decoder.init(PARAMS, keys, prompt)
        assert lanes == fed
        assert info.num_draft_calls.tolist() == calls
        assert info.num_draft_tokens.tolist() == [8 * each for each in calls]
        assert info.num_draft_tokens_computed.tolist() == computed


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="block_len=1"):
        falcon_layers.make_layer(SMALL, 1)
    with pytest.raises(ValueError, match="8 children"):
        methods.falcon(MODEL, LAYER, max_new_tokens=4, branching=(8,))
    with pytest.raises(ValueError, match="nothing is learnt"):
        dataclasses.replace(CONFIG, options={"law_weight": 0, "feature_weight": 0})
