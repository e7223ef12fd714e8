"""Jakiro's layer of two experts: its loss, what learns, and its last level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.contracts import Query, Visibility
from pdecode.decode import run
from pdecode.drafters import features
from pdecode.models import draft_layers, jakiro_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config
from pdecode.train import TrainConfig, passes
from pdecode.train.objectives import jakiro as objective

SMALL = Config(
    vocab_size=7, width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=12,
    tied=True, mask_id=6,
)  # fmt: skip
MODEL = transformer.make_model(SMALL)
TARGET = transformer.init(SMALL, jax.random.key(0))
# Large weights: its laws differ from token to token.
OWN = jax.tree.map(
    lambda leaf: 2 * leaf + 0.1, jakiro_layers.init(SMALL, jax.random.key(1))
)
OWN["layer_0"]["router"]["kernel"] *= jnp.array([[1.0, -1.0, 2.0, -2.0]])
LAYER = jakiro_layers.make_layer(SMALL)
PARAMS = {"model": TARGET, "layer": OWN}
ROOM = 20  # lanes of a text; what follows is not seen


@jax.jit
def _opened(tokens, read):
    """The stream behind the attention, which `test_eagle` has by hand."""
    own = draft_layers.own_config(SMALL)
    place = jnp.arange(ROOM, dtype=jnp.int32)[None]
    visible = Visibility(jnp.zeros_like(place), place + 1)
    query = Query(tokens[None], 1 + place, None, visible, read[None])
    return draft_layers.opened(own, OWN, TARGET, query, None)[0][0]


def by_hand(tokens, read):
    """The two features [n, 2, 8] of the layer behind its attention, in numpy."""
    filled = np.zeros(ROOM, np.int32), np.zeros((ROOM, 8), np.float32)
    filled[0][: len(tokens)], filled[1][: len(read)] = tokens, read
    block = jax.tree.map(np.asarray, OWN["layer_0"])
    found = []
    for x in np.asarray(_opened(*filled))[: len(tokens)]:
        normed = x / np.sqrt((x**2).mean() + 1e-6) * block["mlp_norm"]["weight"]
        said = []
        for expert in ("expert_0", "expert_1"):
            mlp = {name: leaf["kernel"] for name, leaf in block[expert].items()}
            gate = normed @ mlp["gate"]
            inner = gate / (1 + np.exp(-gate)) * (normed @ mlp["up"])
            said.append(inner @ mlp["down"])
        score = np.exp(normed @ block["router"]["kernel"])
        mixed, apart = score[:2] / score[:2].sum(), score[2:] / score[2:].sum()
        top = int(apart[1] >= apart[0])
        now = mixed[0] * said[0] + mixed[1] * said[1]
        gap = apart[top] * said[top] - apart[1 - top] * said[1 - top]
        found.append([x + now, x + gap])
    return np.array(found)


@jax.jit
def _hidden(tokens):
    return passes.hidden(passes.Pass(SMALL), TARGET, tokens[None])[0]


def hidden_of(tokens):
    filled = np.zeros(ROOM, np.int32)
    filled[: len(tokens)] = tokens
    return np.asarray(_hidden(filled))[: len(tokens)]


def logs_of(feature):
    raw = np.asarray(TARGET["embed"]) @ np.asarray(feature, np.float64)
    raw[SMALL.mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


CONFIG = TrainConfig(
    name="x", model=SMALL, objective="jakiro", steps=1, warmup_steps=0, row_len=6,
    frozen={"target": "target"}, options={"law_weight": 0.3, "ahead_weight": 0.4},
)  # fmt: skip
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
FROZEN = {"target": TARGET}


def test_the_loss_is_the_papers_by_hand():
    """Also under noise on what is read, which the targets do not have."""
    shaken = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    batch = {"tokens": jnp.asarray(TOKENS), "feature_noise": jnp.asarray(shaken)}
    value, aux = jax.jit(objective.loss(CONFIG))(OWN, FROZEN, batch, None, 0)
    total, nats = 0.0, np.zeros((2, 5, 2))
    for row, tokens in enumerate(TOKENS):
        true = hidden_of(tokens)
        found = by_hand(tokens[1:], true[:-1] + shaken[row])
        for place in range(5):
            for guess, weight in ((0, 1.0), (1, 0.4)):
                stands = place + 2 + guess  # of the token that the law is of
                if stands > 5:
                    continue
                gap = np.abs(found[place, guess] - true[stands - 1])
                far = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
                mine = logs_of(found[place, guess])
                crossed = -(np.exp(logs_of(true[stands - 1])) * mine).sum()
                total += weight * (far + 0.3 * crossed) / 8
                nats[row, place, guess] = -mine[tokens[stands]]
    np.testing.assert_allclose(value, total, rtol=1e-4)
    np.testing.assert_allclose(aux["nats"] * aux["scored"], nats, rtol=1e-3, atol=1e-3)
    assert aux["weight"] == 8 and aux["places"][:, 0].tolist() == [2, 3, 4, 5, 6]


def test_the_layer_learns_and_nothing_else():
    batch = {"tokens": jnp.asarray(TOKENS)}

    def of(own, frozen):
        return objective.loss(CONFIG)(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OWN, FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path
    assert "mlp" not in OWN["layer_0"] and "attention_norm" not in OWN["layer_0"]


def test_equal_experts_are_one_mlp_and_leave_nothing_apart():
    """The second guess is then its stream times the gap of the shares."""
    own = jax.tree.map(lambda leaf: leaf, OWN)
    own["layer_0"] = {**OWN["layer_0"], "expert_1": OWN["layer_0"]["expert_0"]}
    flat = jnp.zeros_like(OWN["layer_0"]["router"]["kernel"])
    own["layer_0"]["router"] = {"kernel": flat}
    place = jnp.arange(4, dtype=jnp.int32)[None]
    read = jax.random.normal(jax.random.key(3), (1, 4, 8))
    visible = Visibility(jnp.zeros_like(place), place + 1)
    query = Query(jnp.asarray([[1, 2, 3, 0]]), place, None, visible, read)
    found, _ = LAYER.apply(own, TARGET, query, None)
    plain = {**own["layer_0"], "mlp": own["layer_0"]["expert_0"]}
    width = dataclasses.replace(draft_layers.own_config(SMALL), mlp_width=8)
    stream, _ = draft_layers.opened(width, own, TARGET, query, None)
    expected = stream + parts.mixed(width, plain, stream)
    np.testing.assert_allclose(found[..., :8], expected, atol=1e-5)
    np.testing.assert_allclose(found[..., 8:], stream, atol=1e-5)


# What is drafted, against lists of tokens.

PROMPT = prompts.from_rows([[1, 4, 0], [3], [2, 2, 5, 1, 0]], max_new_tokens=9)


def said_behind(committed, path):
    """Both features [2, 8] at the last token of committed tokens and a path."""
    true = hidden_of(committed)
    if len(committed) == 1:  # nothing stands before the first token
        tokens, read = list(committed), np.zeros((1, 8))
    else:
        tokens, read = list(committed[1:]), true[:-1]
    for token in path:
        read = np.concatenate([read, by_hand(tokens, read)[-1:, 0]])
        tokens.append(token)
    return by_hand(tokens, read)[-1]


def grown_by_hand(committed, width, depth, size, is_ahead=True):
    """Paths of the best `size` of a beam; the last level from the grandparents."""
    beam, found = [((), 0.0)], []
    for level in range(depth):
        below = []
        for path, score in beam:
            is_last = is_ahead and level == depth - 1
            said = said_behind(committed, path[:-1] if is_last else path)
            logs = logs_of(said[int(is_last)])
            for token in np.argsort(-logs, kind="stable")[:width]:
                below.append(((*path, int(token)), score + logs[token]))
        found += below
        beam = sorted(below, key=lambda each: -each[1])[:width]
    return {path for path, _ in sorted(found, key=lambda each: -each[1])[:size]}


def test_a_grown_tree_is_that_of_lists_and_its_last_level_said_ahead():
    """Control: with a call for the last level as well it is another tree."""
    from test_eagle import paths_of, rounds

    drafter = features.grown_tree(
        MODEL, LAYER, 9, width=3, max_depth=4, is_last_ahead=True
    )
    others = 0
    for draft, rows in rounds(drafter, 2, MODEL, PARAMS):
        assert (draft.cost.num_calls == 3).all()
        for row, committed in enumerate(rows):
            found = set(paths_of(draft, row))
            assert found == grown_by_hand(committed, 3, 4, 9)
            others += found != grown_by_hand(committed, 3, 4, 9, is_ahead=False)
    assert others > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_another(temperature):
    sizes = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **sizes)
    ahead, stats = run(
        methods.jakiro, (MODEL, LAYER), PARAMS, PROMPT, key,
        num_nodes=12, width=4, max_depth=3, **sizes,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_calls.sum() < 27
    np.testing.assert_array_equal(stats.num_draft_calls, 2 * stats.num_calls)


def test_a_layer_of_one_guess_is_refused():
    sizes = {"max_new_tokens": 4, "num_nodes": 9, "width": 3}
    with pytest.raises(ValueError, match="guesses two tokens"):
        methods.jakiro(MODEL, draft_layers.make_layer(SMALL), max_depth=3, **sizes)
    with pytest.raises(ValueError, match="max_depth=2"):
        methods.jakiro(MODEL, LAYER, max_depth=2, **sizes)
