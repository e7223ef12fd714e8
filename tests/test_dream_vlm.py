"""DREAM's cross-attending layers: their loss, middle states, drafts, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_spec_vlm import (
    BESIDE,
    IMAGE,
    attended_by_hand,
    decoded,
    normed,
    softmax,
)

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import Sampling
from pdecode.drafters import features
from pdecode.families import speculative
from pdecode.models import cross_layers, prefixed, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, passes
from pdecode.train.objectives import dream_vlm as objective

SMALL = Config(
    vocab_size=9, width=8, num_layers=5, num_heads=2, num_kv_heads=1, mlp_width=12,
    mask_id=8,
)  # fmt: skip
# Sharper attention, of which one layer is surer here and another there.
TARGET = jax.tree.map(
    lambda leaf: 1.5 * leaf, transformer.init(SMALL, jax.random.key(3))
)
MODEL = transformer.make_model(SMALL)
GIVEN = 3
CONFIG = TrainConfig(
    name="x", model=SMALL, objective="dream_vlm", steps=1, warmup_steps=0, row_len=7,
    frozen={"target": "target"},
    options={"num_given": GIVEN, "law_weight": 0.7, "middle_weight": 0.6,
             "feature_noise": 0.0},
)  # fmt: skip
FRESH = cross_layers.init(SMALL, jax.random.key(1))
OWN = jax.tree.map(lambda leaf: 1.5 * leaf + 0.2, FRESH)
LAYER = cross_layers.make_layer(SMALL)
PARAMS = {"model": TARGET, "layer": OWN}
FROZEN = {"target": TARGET}
TOKENS = np.array([[1, 0, 3, 2, 5, 4, 6], [2, 2, 0, 1, 0, 5, 7]], np.int32)


@jax.jit
def _hidden(tokens):
    return passes.hidden(passes.Pass(SMALL), TARGET, tokens)


def hidden_of(tokens):
    padded = np.zeros((1, 24), np.int32)  # a causal model does not see it
    padded[0, : len(tokens)] = tokens
    return np.asarray(_hidden(padded))[0, : len(tokens)]


def logs_of(feature):
    raw = np.asarray(TARGET["head"]) @ np.asarray(feature)
    raw[SMALL.mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


def mixed_by_hand(block, x):
    mlp = {name: leaf["kernel"] for name, leaf in block["mlp"].items()}
    inner = normed(x, block["mlp_norm"]["weight"])
    gate = inner @ mlp["gate"]
    return (gate / (1 + np.exp(-gate)) * (inner @ mlp["up"])) @ mlp["down"]


def layer_by_hand(block, stream, places):
    before = normed(stream, block["attention_norm"]["weight"])
    stream = stream + attended_by_hand(block, before, places)
    return stream + mixed_by_hand(block, stream)


def crossed_by_hand(block, stream, read):
    """Each lane over the features up to its own, normed heads and no rotation."""
    kernel = {k: v["kernel"] for k, v in block["attention"].items() if "kernel" in v}
    scales = {k: v["weight"] for k, v in block["attention"].items() if "weight" in v}
    keys = normed(read @ kernel["key"], scales["key_norm"])
    values, out = read @ kernel["value"], []
    for place, x in enumerate(normed(stream, block["attention_norm"]["weight"])):
        asked = normed((x @ kernel["query"]).reshape(2, 4), scales["query_norm"])
        weight = softmax(asked @ keys[: place + 1].T / 2)  # sqrt(4)
        out.append((weight @ values[: place + 1]).reshape(-1) @ kernel["out"])
    stream = stream + np.tanh(block["attention_gate"]["bias"]) * np.stack(out)
    return stream + np.tanh(block["mlp_gate"]["bias"]) * mixed_by_hand(block, stream)


def by_hand(tokens, read, own=OWN):
    """(features, middle) [n, E] on `tokens` [n] beside `read` [n, E], from place 1."""
    own = jax.tree.map(np.asarray, own)
    places = range(1, 1 + len(tokens))
    stream = np.asarray(TARGET["embed"])[list(tokens)]
    stream = layer_by_hand(own["layer_0"], stream, places)
    middle = crossed_by_hand(own["cross"], stream, np.asarray(read))
    last = layer_by_hand(own["layer_1"], middle, places)
    return normed(last, own["norm"]["weight"]), middle


def middle_by_hand(tokens):
    """The state behind the surest of the first two layers, at each token; and which."""
    target = jax.tree.map(np.asarray, TARGET)
    stream = target["embed"][list(tokens)]
    states, spread = [], []
    for layer in range(2):  # 0.4 of five
        block = target[f"layer_{layer}"]
        laws = laws_by_hand(block, normed(stream, block["attention_norm"]["weight"]))
        spread.append([-(law * np.log(np.maximum(law, 1e-30))).sum() for law in laws])
        stream = layer_by_hand(block, stream, range(len(tokens)))
        states.append(stream)
    surest = np.argmin(np.array(spread), 0)
    return np.stack([states[k][i] for i, k in enumerate(surest)]), surest


def laws_by_hand(block, x):
    """Each token's attention, mean over heads."""
    from test_spec_vlm import rotated

    kernel = {name: leaf["kernel"] for name, leaf in block["attention"].items()}
    keys = [
        rotated((row @ kernel["key"]).reshape(1, 4), i)[0] for i, row in enumerate(x)
    ]
    laws = []
    for place, row in enumerate(x):
        asked = rotated((row @ kernel["query"]).reshape(2, 4), place)
        laws.append(softmax(asked @ np.stack(keys[: place + 1]).T / 2).mean(0))
    return laws


def smooth(found, true):
    gap = np.abs(found - true)
    return np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()


def test_the_loss_is_the_papers_by_hand():
    batch = {"tokens": jnp.asarray(TOKENS)}
    value, aux = jax.jit(objective.loss(CONFIG))(OWN, FROZEN, batch, None, 0)
    total, nats, chosen = [], [], set()
    for tokens in TOKENS:
        true = hidden_of(tokens)
        guess, middle = by_hand(tokens[1:], true[:-1])
        wanted, surest = middle_by_hand(tokens)
        chosen |= set(surest[GIVEN - 1 :].tolist())
        for place in range(GIVEN - 1, len(tokens) - 1):
            mine, its = logs_of(guess[place - 1]), logs_of(true[place])
            apart = (np.exp(its) * (its - mine)).sum()
            total.append(
                0.2 * smooth(guess[place - 1], true[place])
                + 0.7 * apart
                + 0.6 * smooth(middle[place - 1], wanted[place])
            )
            nats.append(-mine[tokens[place + 1]])
    assert chosen == {0, 1}
    np.testing.assert_allclose(value, np.mean(total), rtol=1e-4)
    counted = np.asarray(aux["nats"])[np.asarray(aux["scored"])]
    np.testing.assert_allclose(counted, nats, rtol=1e-3, atol=1e-4)
    assert aux["places"].tolist() == [2, 3, 4, 5, 6] and aux["weight"] == 8


def test_the_surest_layer_is_that_of_the_least_entropy():
    """Constructed: a layer of equal keys is unsure, one of large ones is sure."""
    blocks = {}
    for layer, size in ((0, 0.0), (1, 9.0)):
        block = TARGET[f"layer_{layer}"]
        attention = {**block["attention"]}
        attention["key"] = {"kernel": size * block["attention"]["key"]["kernel"]}
        blocks[f"layer_{layer}"] = {**block, "attention": attention}
    for even, other in (("layer_0", "layer_1"), ("layer_1", "layer_0")):
        pair = {"layer_0": blocks["layer_0"], "layer_1": blocks["layer_1"]}
        if even == "layer_1":
            pair = {"layer_0": blocks["layer_1"], "layer_1": blocks["layer_0"]}
        target = {**TARGET, **pair}
        _, surest = objective.middle_of(SMALL, target, jnp.asarray(TOKENS), 0.4)
        # Token 0 sees itself alone: no layer is surer.
        assert surest[:, 0].tolist() == [0, 0]
        assert (surest[:, 1:] == int(other[-1])).all()
    _, only = objective.middle_of(SMALL, TARGET, jnp.asarray(TOKENS), 0.1)
    assert not only.any()


def test_the_layers_learn_and_nothing_else():
    def of(own, frozen):
        batch = {"tokens": jnp.asarray(TOKENS)}
        return objective.loss(CONFIG)(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OWN, FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def test_at_the_start_the_cross_attention_is_nothing():
    """Its gates are closed: no feature is read, and they are the first to learn."""
    tokens, true = TOKENS[0], hidden_of(TOKENS[0])
    one, _ = by_hand(tokens[1:], true[:-1], FRESH)
    two, _ = by_hand(tokens[1:], 0 * true[:-1], FRESH)
    np.testing.assert_array_equal(one, two)
    found = objective.dreamt(
        SMALL, CONFIG.options, FRESH, TARGET, jnp.asarray(TOKENS)
    ).guessed
    np.testing.assert_allclose(found.features[0], one, atol=1e-4)

    def of(own):
        batch = {"tokens": jnp.asarray(TOKENS)}
        return objective.loss(CONFIG)(own, FROZEN, batch, None, 0)[0]

    cross = jax.jit(jax.grad(of))(FRESH)["cross"]
    assert np.abs(cross["attention_gate"]["bias"]) > 0
    assert np.abs(cross["mlp_gate"]["bias"]) > 0
    assert not np.abs(cross["attention"]["key"]["kernel"]).any()


PROMPT = prompts.from_rows([[1, 4, 0], [2, 3], [2, 2, 5, 1, 0]], max_new_tokens=8)
TREE = trees.choices([(0,), (1,), (0, 0), (1, 0), (0, 0, 0)])


def best_by_hand(topology, committed):
    """Tokens of a static tree of best children, by layers that keep nothing."""
    true = hidden_of(committed)
    tokens, paths = [], []
    for node, parent in enumerate(topology.parents):
        nth = topology.parents[:node].count(parent)
        path = paths[parent] if parent >= 0 else []
        text, read = list(committed[1:]), true[:-1]
        for token in path:
            read = np.concatenate([read, by_hand(text, read)[0][-1:]])
            text.append(token)
        order = np.argsort(-logs_of(by_hand(text, read)[0][-1]), kind="stable")
        tokens.append(int(order[nth]))
        paths.append([*path, tokens[-1]])
    return tokens


@pytest.mark.parametrize("topology", [trees.chain(3), TREE], ids=["chain", "tree"])
def test_drafts_are_those_of_layers_that_keep_nothing(topology):
    """True features where text is committed, their own on a draft."""
    sampling = Sampling(1.0)
    drafter = features.static_tree(MODEL, LAYER, topology, sampling)
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=8, sampling=sampling
    )
    keys = rng.row_keys(jax.random.key(3), PROMPT.row_ids)
    state, _ = jax.jit(decoder.init)(PARAMS, keys, PROMPT)

    @jax.jit
    def turn(state):
        draft, _ = drafter.propose(PARAMS, keys, state.drafter, state.prefix)
        return draft, decoder.step(PARAMS, keys, state)[0]

    for _ in range(3):
        lengths, text = state.prefix.length.tolist(), np.asarray(state.prefix.tokens)
        draft, state = turn(state)
        for row, length in enumerate(lengths):
            if length < state.prefix.end[row]:
                wanted = best_by_hand(topology, text[row, :length].tolist())
                assert draft.tokens[row].tolist() == wanted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_is_the_multimodal_targets_token_for_token(temperature):
    """And without its image the target says something else: the control."""
    target = prefixed.prefixed(MODEL, IMAGE)
    plain, _ = decoded(methods.autoregressive, target, TARGET, temperature)
    found, stats = decoded(
        methods.eagle2, (target, LAYER), PARAMS, temperature,
        num_nodes=6, width=3, max_depth=3,
    )  # fmt: skip
    np.testing.assert_array_equal(found, plain)
    assert (stats.num_draft_calls > stats.num_calls).all()
    blind = BESIDE._replace(context=0 * BESIDE.context)
    other, _ = decoded(methods.autoregressive, target, TARGET, temperature, blind)
    assert (other != plain).any()


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"fraction=1.5 must be"):
        objective.Options(fraction=1.5)
    with pytest.raises(ValueError, match="all three weights are 0"):
        objective.Options(feature_weight=0, law_weight=0, middle_weight=0)
    with pytest.raises(ValueError, match="row_len=4 must be at least 5"):
        objective.start(dataclasses.replace(CONFIG, row_len=4), jax.random.key(0), None)


def test_the_layers_learn_to_draft_behind_images():
    import optax

    config = dataclasses.replace(
        CONFIG, row_len=IMAGE + 13, options={"num_given": IMAGE + 1}
    )
    draw = np.random.default_rng(3)

    def rows_of(count):
        rows = [draw.integers(0, 8, IMAGE + 1).tolist() for _ in range(count)]
        return prompts.from_rows(rows, max_new_tokens=12)

    text, _ = decoded(methods.autoregressive, MODEL, TARGET, 1.0, rows_of(48))
    batch = {"tokens": jnp.asarray(text[:, : IMAGE + 13])}
    loss, update = objective.loss(config), optax.adamw(5e-3)

    @jax.jit
    def turn(carry, key):
        own, state = carry
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(
            own, FROZEN, batch, key, 0
        )
        changes, state = update.update(grads, state, own)
        return (optax.apply_updates(own, changes), state), value

    keys = jax.random.split(jax.random.key(6), 200)
    (learnt, _), values = jax.lax.scan(turn, (FRESH, update.init(FRESH)), keys)
    assert values[-10:].mean() < 0.7 * values[:10].mean()
    fresh, calls = rows_of(24), []
    for each in (FRESH, learnt):
        params = {"model": TARGET, "layer": each}
        _, stats = decoded(
            methods.eagle, (MODEL, LAYER), params, 0.0, fresh, branching=(1, 1, 1)
        )
        calls.append(int(stats.num_calls.sum()))
    assert calls[1] < 0.85 * calls[0]
