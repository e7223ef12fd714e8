"""FLASH: several features an answer behind few latents: loss, drafts, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_spec_vlm import (
    BESIDE,
    FEATURES,
    FROZEN,
    IMAGE,
    MODEL,
    NEW,
    PROMPT,
    ROWS,
    SMALL,
    TARGET,
    TOKENS,
    attended_by_hand,
    decoded,
    hidden_of,
    logs_of,
    normed,
    softmax,
)

from pdecode import methods, prompts, rng, trees
from pdecode.contracts import Sampling
from pdecode.drafters import features
from pdecode.families import speculative
from pdecode.models import condensers, prefixed, visual_layers
from pdecode.train import TrainConfig
from pdecode.train.objectives import flash as objective

LATENTS, AHEAD = 3, 2
CONFIG = TrainConfig(
    name="x", model=SMALL, objective="flash", steps=1, warmup_steps=0, row_len=12,
    frozen={"target": "target"},
    options={"num_features": IMAGE, "num_latents": LATENTS, "num_ahead": AHEAD,
             "law_weight": 0.3, "feature_noise": 0.0},
)  # fmt: skip
OWN = jax.tree.map(
    lambda leaf: 2 * leaf + 0.1,
    objective.start(CONFIG, jax.random.key(1), None),
)
LAYER = visual_layers.make_layer(SMALL, CONFIG.options.condenser, AHEAD)
PARAMS = {"model": TARGET, "layer": OWN}


def by_hand(tokens, read):
    """Features [n, A, E] at the n text tokens of a row, in numpy."""
    own = jax.tree.map(np.asarray, OWN)
    table, read = np.asarray(TARGET["embed"]), np.asarray(read)
    image = softmax(own["condenser"]["latents"] @ read[:IMAGE].T) @ read[:IMAGE]
    text = [
        np.concatenate([table[token], feature]) @ own["fc"]["kernel"]
        + own["fc"]["bias"]
        for token, feature in zip(tokens[IMAGE:], read[IMAGE - 1 : len(tokens) - 1])
    ]
    stream = np.concatenate([image, np.stack(text)])
    places = [1, 3, 5, *range(IMAGE, IMAGE + len(text))]
    stream = stream + attended_by_hand(own["layer_0"], stream, places)
    inner = normed(stream, own["layer_0"]["mlp_norm"]["weight"])
    opened = inner @ own["ahead"]["open"]["kernel"]
    branch = (opened / (1 + np.exp(-opened))) @ own["ahead"]["close"]["kernel"]
    found = stream[:, None] + branch.reshape(len(stream), AHEAD, -1)
    return found[LATENTS:]


def test_the_loss_is_the_papers_by_hand():
    """Guess i of token t is compared with the target at t + i, if there is a next."""
    rows = TOKENS[:3]
    batch = {"tokens": jnp.asarray(rows)}
    value, aux = jax.jit(objective.loss(CONFIG))(OWN, FROZEN, batch, None, 0)
    total, nats = [], {}
    for b, tokens in enumerate(rows):
        true = hidden_of(tokens)
        guess = by_hand(tokens, true)
        for place in range(IMAGE, len(tokens) - 1):
            for i in range(AHEAD):
                if place + i + 1 >= len(tokens):
                    continue
                mine = guess[place - IMAGE, i]
                gap = np.abs(mine - true[place + i])
                far = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
                its = logs_of(true[place + i])
                total.append(far - 0.3 * (np.exp(its) * logs_of(mine)).sum())
                nats[b, place - IMAGE, i] = -logs_of(mine)[tokens[place + i + 1]]
    np.testing.assert_allclose(value, np.mean(total), rtol=1e-4)
    assert aux["weight"] == len(total) == len(nats)
    for where, each in nats.items():
        assert aux["scored"][where]
        np.testing.assert_allclose(aux["nats"][where], each, rtol=1e-3, atol=1e-4)
        assert aux["places"][where[1:]] == IMAGE + where[1] + where[2] + 1


def test_offsets_are_where_they_say_on_an_arithmetic_sequence():
    """Answers are the tokens t + 1 + i: of 0 1 2 .. each its own number of steps on."""
    tokens = jnp.arange(12, dtype=jnp.int32)[None]
    wanted, scored, places = objective.answers(tokens, CONFIG.options, ())
    np.testing.assert_array_equal(wanted[0][scored[0]], places[np.asarray(scored[0])])
    first = [[7, 8], [8, 9], [9, 10], [10, 11], [11, 12]]
    assert places.tolist() == first and scored[0].sum() == 9


def test_the_layer_and_its_queries_learn_and_nothing_else():
    def of(own, frozen):
        batch = {"tokens": jnp.asarray(TOKENS)}
        return objective.loss(CONFIG)(own, frozen, batch, None, 0)[0]

    mine, its = jax.jit(jax.grad(of, (0, 1)))(OWN, FROZEN)
    assert set(mine) == {"fc", "layer_0", "ahead", "condenser"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
        assert np.abs(leaf).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(its):
        assert np.abs(leaf).max() == 0, path


def blocks_by_hand(committed, num_blocks):
    """Tokens of a chain of answers."""
    text, read, drafted = list(committed), hidden_of(committed), []
    for _ in range(num_blocks):
        guess = by_hand(text, read)[-1]
        best = [int(np.argmax(logs_of(each))) for each in guess]
        # Token i stands beside the guess before it; the last row of `read` is unread.
        read = np.concatenate([read[: len(text) - 1], guess, guess[:1]])
        text, drafted = text + best, drafted + best
    return drafted


def test_drafts_are_those_of_a_drafter_that_keeps_nothing():
    sampling = Sampling(1.0)
    drafter = features.semi_chain(MODEL, LAYER, 2, sampling)
    assert drafter.max_depth == 4
    decoder = speculative.draft_verify(
        MODEL, drafter, max_new_tokens=NEW, sampling=sampling
    )
    keys = rng.row_keys(jax.random.key(3), PROMPT.row_ids)
    state, info = jax.jit(decoder.init)(PARAMS, keys, PROMPT)
    assert info.num_draft_tokens.tolist() == [len(row) - 1 - 3 for row in ROWS]

    @jax.jit
    def turn(state):
        draft, _ = drafter.propose(PARAMS, keys, state.drafter, state.prefix)
        return draft, *decoder.step(PARAMS, keys, state)

    for _ in range(3):
        lengths, text = state.prefix.length.tolist(), np.asarray(state.prefix.tokens)
        draft, state, info = turn(state)
        for row, length in enumerate(lengths):
            if length < len(ROWS[row]) + NEW:
                committed = text[row, :length].tolist()
                assert draft.tokens[row].tolist() == blocks_by_hand(committed, 2)
                assert info.num_draft_calls[row] == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_is_the_multimodal_targets_token_for_token(temperature):
    """And a target that reads the latents says something else: the control."""
    target = prefixed.prefixed(MODEL, IMAGE)
    plain, _ = decoded(methods.autoregressive, target, TARGET, temperature)
    found, stats = decoded(
        methods.flash, (target, LAYER), PARAMS, temperature, num_blocks=2
    )
    np.testing.assert_array_equal(found, plain)
    assert (stats.num_draft_calls > stats.num_calls).all()
    latents = condensers.operator("latents", LATENTS, OWN["condenser"], FEATURES)
    less = BESIDE._replace(context=jnp.repeat(latents, 2, 1))
    other, _ = decoded(methods.autoregressive, target, TARGET, temperature, less)
    assert (other != plain).any()


def test_what_cannot_be_is_refused():
    for call, message in (
        (lambda: features.static_tree(MODEL, LAYER, trees.chain(2), Sampling()),
         "answers with 2 features a token"),
        (lambda: features.semi_chain(MODEL, LAYER, 0, Sampling()), "num_blocks=0 must"),
        (lambda: objective.Options(num_ahead=0), "num_ahead=0 must be at least 1"),
        (lambda: objective.Options(num_latents=65),
         "latents=65 must be .* at most num_features=64"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_a_layer_learns_to_draft_behind_images():
    """On a random target's own answers, with all its image as latents and few."""
    import optax

    config = dataclasses.replace(CONFIG, row_len=IMAGE + 13)
    own = objective.start(config, jax.random.key(1), None)
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
    (learnt, _), values = jax.lax.scan(turn, (own, update.init(own)), keys)
    assert values[-10:].mean() < 0.7 * values[:10].mean()
    fresh, calls = rows_of(24), []
    for each in (own, learnt):
        params = {"model": TARGET, "layer": each}
        _, stats = decoded(
            methods.flash, (MODEL, LAYER), params, 0.0, fresh, num_blocks=2
        )
        calls.append(int(stats.num_calls.sum()))
    assert calls[1] < 0.85 * calls[0]
