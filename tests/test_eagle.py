"""EAGLE's draft layer: its loss, what learns, what it drafts from, what is accepted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import DraftLayer, Query, Sampling, Visibility
from pdecode.decode import run
from pdecode.drafters import features
from pdecode.families import speculative
from pdecode.models import draft_layers, toy, transformer
from pdecode.models.config import Config
from pdecode.train import TrainConfig, passes
from pdecode.train.objectives import eagle as objective
from pdecode.train.objectives import eagle3

SMALL = Config(
    vocab_size=7, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12,
    tied=True, mask_id=6,
)  # fmt: skip
TARGET = transformer.init(SMALL, jax.random.key(0))
# Large weights: its laws differ from token to token.
OWN = jax.tree.map(
    lambda leaf: 2 * leaf + 0.1, draft_layers.init(SMALL, jax.random.key(1))
)
LAYER = draft_layers.make_layer(SMALL)
PARAMS = {"model": TARGET, "layer": OWN}


def hidden_of(tokens):
    return passes.hidden(passes.Pass(SMALL), TARGET, jnp.asarray([tokens]))[0]


def rotated(x, position):
    """[H, D] turned as a Llama does."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)


def by_hand(own, read, tokens):
    """Features [n, E] of the layer on `tokens` [n] beside `read` [n, E], in numpy."""
    own = jax.tree.map(np.asarray, own)
    block, table = own["layer_0"], np.asarray(TARGET["embed"])
    keys, values, out = [], [], []
    for position, (token, feature) in enumerate(zip(tokens, np.asarray(read)), 1):
        x = np.concatenate([table[token], feature])
        x = x @ own["fc"]["kernel"] + own["fc"]["bias"]
        kernel = {name: leaf["kernel"] for name, leaf in block["attention"].items()}
        query = rotated((x @ kernel["query"]).reshape(2, 4), position)
        keys.append(rotated((x @ kernel["key"]).reshape(1, 4), position)[0])
        values.append(x @ kernel["value"])
        score = query @ np.stack(keys).T / 2  # sqrt(4)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        x = x + (weight @ np.stack(values)).reshape(-1) @ kernel["out"]
        normed = x / np.sqrt((x**2).mean() + 1e-6) * block["mlp_norm"]["weight"]
        mlp = {name: leaf["kernel"] for name, leaf in block["mlp"].items()}
        gate = normed @ mlp["gate"]
        out.append(
            x + (gate / (1 + np.exp(-gate)) * (normed @ mlp["up"])) @ mlp["down"]
        )
    return np.stack(out)


def logs_of(feature):
    """Logs of the target's law of a feature, without the mask."""
    raw = np.asarray(TARGET["embed"]) @ np.asarray(feature)
    raw[SMALL.mask_id] = -1e9
    raw -= raw.max()
    return raw - np.log(np.exp(raw).sum())


CONFIG = TrainConfig(
    name="x", model=SMALL, objective="eagle", steps=1, warmup_steps=0, row_len=6,
    frozen={"target": "target"}, options={"law_weight": 0.3},
)  # fmt: skip
TOKENS = np.array([[1, 0, 3, 2, 5, 4], [2, 2, 0, 1, 0, 5]], np.int32)
FROZEN = {"target": TARGET}


def test_the_loss_is_the_papers_by_hand():
    """Also under noise on what is read, which the targets do not have."""
    shaken = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    for noise in (None, shaken):
        batch = {"tokens": jnp.asarray(TOKENS)}
        if noise is not None:
            batch["feature_noise"] = jnp.asarray(noise)
        value, aux = jax.jit(objective.loss(CONFIG))(OWN, FROZEN, batch, None, 0)
        total, nats = 0.0, []
        for row, tokens in enumerate(TOKENS):
            true = np.asarray(hidden_of(tokens))
            read = true[:-1] + (0 if noise is None else noise[row])
            guess = by_hand(OWN, read, tokens[1:])
            for place in range(1, 5):  # the last token has no next one
                gap = np.abs(guess[place - 1] - true[place])
                far = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
                mine, its = logs_of(guess[place - 1]), logs_of(true[place])
                crossed = -(np.exp(its) * mine).sum()
                total += (far + 0.3 * crossed) / 8
                nats.append(-mine[tokens[place + 1]])
        np.testing.assert_allclose(value, total, rtol=1e-4)
        np.testing.assert_allclose(np.ravel(aux["nats"]), nats, rtol=1e-3, atol=1e-4)
        assert aux["places"].tolist() == [2, 3, 4, 5] and aux["weight"] == 8


def test_the_layer_learns_and_nothing_else():
    batch = {"tokens": jnp.asarray(TOKENS)}

    def of(own, frozen):
        return objective.loss(CONFIG)(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OWN, FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path
    assert "attention_norm" not in OWN["layer_0"]


def test_noise_is_as_large_as_the_paper_says():
    batch = {"tokens": jnp.zeros((64, 32), jnp.int32)}
    noise = objective.noise(CONFIG)(batch, jax.random.key(0))["feature_noise"]
    assert noise.shape == (64, 31, 8)
    limit = 0.1 * 512 / 32
    assert 0.99 * limit < np.abs(noise).max() <= limit
    still = dataclasses.replace(CONFIG, options={"feature_noise": 0.0})
    assert set(objective.noise(still)(batch, jax.random.key(0))) == {"tokens"}


# What is drafted, against a drafter that keeps nothing and reads everything anew.

PROMPT = prompts.from_rows([[1, 4, 0], [3], [2, 2, 5, 1, 0]], max_new_tokens=9)


def guess_by_hand(committed, path):
    """The layer's feature behind committed tokens and a drafted path."""
    true = np.asarray(hidden_of(committed))
    if len(committed) == 1:  # nothing stands before the first token
        tokens, read = list(committed), np.zeros((1, 8))
    else:
        tokens, read = list(committed[1:]), true[:-1]
    for token in path:
        read = np.concatenate([read, by_hand(OWN, read, tokens)[-1:]])
        tokens.append(token)
    return by_hand(OWN, read, tokens)[-1]


def best_by_hand(topology, committed):
    """Tokens of a static tree of best children."""
    tokens, paths = [], []
    for node, parent in enumerate(topology.parents):
        nth = topology.parents[:node].count(parent)
        path = paths[parent] if parent >= 0 else []
        order = np.argsort(-logs_of(guess_by_hand(committed, path)), kind="stable")
        tokens.append(int(order[nth]))
        paths.append([*path, tokens[-1]])
    return tokens


def grown_by_hand(committed, width, depth, size):
    """Paths of the best `size` candidates of a beam of `width`, EAGLE-2's way."""
    beam, found = [((), 0.0)], []
    for _ in range(depth):
        below = []
        for path, score in beam:
            logs = logs_of(guess_by_hand(committed, path))
            for token in np.argsort(-logs, kind="stable")[:width]:
                below.append(((*path, int(token)), score + logs[token]))
        found += below
        beam = sorted(below, key=lambda each: -each[1])[:width]
    return {path for path, _ in sorted(found, key=lambda each: -each[1])[:size]}


def paths_of(draft, row):
    """The paths that a draft's nodes stand for."""
    tokens, parents, found = draft.tokens[row], draft.parents[row], []
    for token, parent in zip(tokens.tolist(), parents.tolist()):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def rounds(drafter, num_rounds=3, model=None, own=PARAMS):
    """(draft, committed tokens of each row) of the first rounds, as numpy."""
    decoder = speculative.draft_verify(
        model or transformer.make_model(SMALL), drafter, max_new_tokens=9,
        sampling=Sampling(1.0),
    )  # fmt: skip
    keys = rng.row_keys(jax.random.key(3), PROMPT.row_ids)
    state, _ = jax.jit(decoder.init)(own, keys, PROMPT)

    @jax.jit
    def turn(state):
        draft, _ = drafter.propose(own, keys, state.drafter, state.prefix)
        return draft, decoder.step(own, keys, state)[0]

    for _ in range(num_rounds):
        lengths, tokens = state.prefix.length.tolist(), np.asarray(state.prefix.tokens)
        draft, state = turn(state)
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
        yield jax.tree.map(np.asarray, draft), rows


TREE = trees.choices([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
MODEL_OF = transformer.make_model(SMALL)


@pytest.mark.parametrize("topology", [trees.chain(3), TREE], ids=["chain", "tree"])
def test_drafts_are_those_of_a_drafter_that_keeps_nothing(topology):
    drafter = features.static_tree(MODEL_OF, LAYER, topology, Sampling(1.0))
    accepted = 0
    for draft, rows in rounds(drafter):
        for row, committed in enumerate(rows):
            assert draft.tokens[row].tolist() == best_by_hand(topology, committed)
        accepted += sum(map(len, rows))
    assert accepted > 3 * 9 + 3  # several tokens of a draft were kept at once


def test_guessed_features_kept_as_true_are_caught():
    """Negative control: the layer's own guesses in place of the target's features."""
    right = features.static_tree(MODEL_OF, LAYER, TREE, Sampling(1.0))

    def observe(params, keys, state, round):
        after = right.observe(params, keys, state, round)
        return after._replace(features=after.features[:, ::-1])

    wrong = 0
    for draft, rows in rounds(right._replace(observe=observe)):
        for row, committed in enumerate(rows):
            wrong += draft.tokens[row].tolist() != best_by_hand(TREE, committed)
    assert wrong > 0


def test_a_grown_tree_is_that_of_lists():
    drafter = features.grown_tree(MODEL_OF, LAYER, 8, width=3, max_depth=4)
    for draft, rows in rounds(drafter):
        for row, committed in enumerate(rows):
            expected = grown_by_hand(committed, 3, 4, 8)
            assert set(paths_of(draft, row)) == expected


# A layer that knows the next feature: the toy's own model, which needs none.

LENGTH = 20
LAW = toy.chain(3, 4, LENGTH, sharpness=3.0)
TOY = toy.make_model(4, LENGTH)


def _perfect(params, target, query, cache):
    output, cache = TOY.apply(target, query._replace(extra=None), cache)
    return output.hidden, cache


PERFECT = DraftLayer(
    TOY.init_cache,
    _perfect,
    lambda params, output: output.hidden,
    lambda params, target, guess: (guess, TOY.head(target)),
    width=5,
)


@pytest.mark.parametrize(
    ("method", "sizes"),
    [("eagle", {"branching": (1, 1, 1)}), ("eagle", {"branching": (2, 1, 1)}),
     ("eagle2", {"num_nodes": 30, "width": 4, "max_depth": 3})],
)  # fmt: skip
def test_a_layer_that_is_right_has_its_whole_depth_accepted(method, sizes):
    prompt = prompts.from_rows([[0, 1], [2], [3, 3, 1]], max_new_tokens=12)
    _, stats = run(
        getattr(methods, method), (TOY, PERFECT), {"model": LAW, "layer": ()}, prompt,
        jax.random.key(0), max_new_tokens=12, **sizes,
    )  # fmt: skip
    assert stats.num_calls.tolist() == [3, 3, 3]  # 3 drafted and 1 more a call


def test_what_does_not_fit_is_refused():
    tapped = LAYER._replace(taps=("layer_0",))
    for call, message in (
        (lambda: features.static_tree(MODEL_OF, tapped, TREE, Sampling()),
         r"reads the taps \('layer_0',\).* has taps=\(\)"),
        (lambda: features.static_tree(MODEL_OF, LAYER, TREE, Sampling(), draws="iid"),
         r"draws='iid' must be one of"),
        (lambda: features.static_tree(
            MODEL_OF, LAYER, trees.expand((8,)), Sampling()), "8 children"),
        (lambda: features.grown_tree(MODEL_OF, LAYER, 3, width=2, max_depth=3),
         "num_nodes=3 must lie in"),
        (lambda: draft_layers.make_layer(
            dataclasses.replace(SMALL, attention="bidirectional", shift=True)),
         "shift=True"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_two_layers_with_a_cache_are_those_without():
    own = draft_layers.init(SMALL, jax.random.key(4), 2)
    layer = draft_layers.make_layer(SMALL, 2)
    assert set(own["layer_1"]) - set(own["layer_0"]) == {"attention_norm"}
    place = jnp.arange(5, dtype=jnp.int32)[None]
    read = jax.random.normal(jax.random.key(5), (1, 5, 8))
    whole = Query(
        jnp.asarray(TOKENS[:1, :5]), place, place,
        Visibility(jnp.zeros_like(place), place + 1), extra=read,
    )  # fmt: skip
    apply = jax.jit(functools.partial(layer.apply, own, TARGET))
    expected, _ = apply(whole._replace(slots=None), None)
    prompt = prompts.from_rows([[1]], max_new_tokens=1)
    found, _ = apply(whole, layer.init_cache(prompt, 9))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# EAGLE-3.

TAPPED = eagle3.tapped(SMALL)
FUSED = draft_layers.make_fused(TAPPED)


def fused_params(seed=6):
    """A layer's parameters away from where they begin."""
    own = draft_layers.init_fused(TAPPED, jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed + 1), 99))
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), own
    )


CONFIG3 = dataclasses.replace(
    CONFIG, objective="eagle3", options={"num_steps": 3, "step_decay": 0.5}
)


def test_training_time_test_is_the_draft_loop_on_the_texts_tokens():
    """Each step against a chain of its own, and the loss against its sum."""
    own, tokens = fused_params(), jnp.asarray(TOKENS[:1])
    nats, law = jax.jit(
        lambda own: eagle3.unrolled(SMALL, CONFIG3.options, own, TARGET, tokens)
    )(own)  # fmt: skip
    output = passes.run(passes.Pass(TAPPED), TARGET, tokens)
    true = FUSED.read(own, output)
    assert TAPPED.taps == ("embed", "layer_0", "layer_1")
    total, rows = 0.0, 0
    for row in range(5):
        read = true[:, : row + 1]
        for step in range(min(3, 4 - row)):
            place = jnp.arange(row + 1 + step, dtype=jnp.int32)[None]
            query = Query(
                tokens[:, 1 : row + 2 + step], place, None,
                Visibility(jnp.zeros_like(place), place + 1), extra=read,
            )  # fmt: skip
            found = FUSED.apply(own, TARGET, query, None)[0][:, -1:]
            hidden, head = FUSED.law(own, TARGET, found)
            raw = (hidden[0, 0] @ head.weight.T).at[SMALL.mask_id].set(-1e9)
            expected = -jax.nn.log_softmax(raw)
            np.testing.assert_allclose(nats[0, row, step], expected, atol=1e-3)
            its = np.exp(logs_of(output.hidden[0, row + 1 + step]))
            np.testing.assert_allclose(law[0, row, step], its, atol=1e-5)
            total += 0.5**step * float((its * np.asarray(expected)).sum())
            rows += step == 0
            read = jnp.concatenate([read, found], 1)
    batch = {"tokens": tokens}
    value, aux = jax.jit(eagle3.loss(CONFIG3))(own, FROZEN, batch, None, 0)
    np.testing.assert_allclose(value, total / rows, rtol=1e-4)
    assert aux["weight"] == rows == 4


def test_the_fused_layer_learns_and_nothing_else():
    batch = {"tokens": jnp.asarray(TOKENS)}

    def of(own, frozen):
        return eagle3.loss(CONFIG3)(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(fused_params(), FROZEN)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def test_a_fused_layers_head_begins_as_the_targets():
    own = draft_layers.init_fused(TAPPED, jax.random.key(0))
    head = FUSED.law(own, TARGET, jnp.ones((1, 1, 8)))[1]
    np.testing.assert_array_equal(head.weight, TARGET["embed"])
    assert draft_layers.default_taps(32) == ("layer_1", "layer_15", "layer_28")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_fused_layer_drafts_from_taps_and_changes_no_token(temperature):
    model = MODEL_OF.tapped(TAPPED.taps)
    params = {"model": TARGET, "layer": fused_params()}
    sizes = {"max_new_tokens": 9, "knobs": {"temperature": temperature}}
    key = jax.random.key(1)
    plain, _ = run(methods.autoregressive, MODEL_OF, TARGET, PROMPT, key, **sizes)
    ahead, stats = run(
        methods.eagle2, (model, FUSED), params, PROMPT, key,
        num_nodes=8, width=3, max_depth=3, **sizes,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_calls.sum() < 24
    with pytest.raises(ValueError, match="reads the taps"):
        methods.eagle2(MODEL_OF, FUSED, max_new_tokens=9)


def test_a_fused_drafter_reads_true_taps_after_each_round():
    """As a chain drafted by a layer that keeps nothing."""
    own = fused_params()
    drafter = features.static_tree(
        MODEL_OF.tapped(TAPPED.taps), FUSED, trees.chain(2), Sampling(1.0)
    )
    params = {"model": TARGET, "layer": own}
    for draft, rows in rounds(drafter, model=MODEL_OF.tapped(TAPPED.taps), own=params):
        for row, committed in enumerate(rows):
            if len(committed) == 1:
                continue
            tokens = jnp.asarray([committed])
            output = passes.run(passes.Pass(TAPPED), TARGET, tokens)
            read, chain = FUSED.read(own, output)[:, :-1], []
            for _ in range(2):
                text = jnp.asarray([[*committed[1:], *chain]])
                place = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
                query = Query(
                    text, place, None,
                    Visibility(jnp.zeros_like(place), place + 1), extra=read,
                )  # fmt: skip
                found = FUSED.apply(own, TARGET, query, None)[0][:, -1:]
                hidden, head = FUSED.law(own, TARGET, found)
                raw = (hidden[0, 0] @ head.weight.T).at[SMALL.mask_id].set(-1e9)
                chain.append(int(jnp.argmax(raw)))
                read = jnp.concatenate([read, found], 1)
            assert draft.tokens[row].tolist() == chain


def test_with_zeros_a_fused_layer_begins_as_one_of_the_last_tap():
    """Hyper-Bagel: what the other taps say is not read yet, and is learnt to be."""
    own = draft_layers.init_fused(TAPPED, jax.random.key(0), zero_init=True)
    made = jax.jit(lambda tokens: passes.run(passes.Pass(TAPPED), TARGET, tokens))
    output = made(jnp.asarray(TOKENS))
    last = output.taps[TAPPED.taps[-1]]
    np.testing.assert_array_equal(FUSED.read(own, output), last)
    # A layer of the last tap alone, whose map is the identity.
    alone = dataclasses.replace(SMALL, taps=TAPPED.taps[-1:])
    plain = {**own, "fc": {"kernel": jnp.eye(SMALL.width)}}

    def law(model, params):
        two = eagle3.Options(num_steps=2)
        return eagle3.unrolled(model, two, params, TARGET, jnp.asarray(TOKENS))[0]

    mine = jax.jit(functools.partial(law, TAPPED))(own)
    np.testing.assert_allclose(
        mine, jax.jit(functools.partial(law, alone))(plain), atol=1e-5
    )
    drawn = draft_layers.init_fused(TAPPED, jax.random.key(0))
    assert np.abs(jax.jit(functools.partial(law, TAPPED))(drawn) - mine).max() > 1e-2
    # The control, and what the run's option does.
    config = dataclasses.replace(
        CONFIG, objective="eagle3", options={"num_steps": 2, "zero_init": True}
    )
    begun = eagle3.start(config, jax.random.key(0), None)
    jax.tree.map(np.testing.assert_array_equal, begun, own)

    def of(own):
        batch = {"tokens": jnp.asarray(TOKENS)}
        return eagle3.loss(config)(own, FROZEN, batch, None, 0)[0]

    grads = jax.jit(jax.grad(of))(own)["fc"]["kernel"]
    width = SMALL.width
    for tap in range(len(TAPPED.taps)):
        assert np.abs(grads[tap * width : (tap + 1) * width]).max() > 0
