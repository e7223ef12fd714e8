"""Layers side by side for drafts, and a drafter that is set right once a round."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import decode as decode_module
from pdecode import methods, prompts, trees
from pdecode.contracts import Sampling
from pdecode.decode import run
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.models import layers, transformer

CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=4, num_heads=4, num_kv_heads=2, mlp_width=24
)
MODEL = transformer.make_model(CONFIG)
OWN = transformer.init(CONFIG, jax.random.key(0))
PARAMS = {"model": OWN, "drafter": OWN}
PROMPT = prompts.from_rows([[1, 2, 3], [4], [5, 6, 7, 8]], max_new_tokens=[14, 15, 9])


def query(num_lanes=5):
    place = jnp.broadcast_to(jnp.arange(num_lanes, dtype=jnp.int32), (2, num_lanes))
    tokens = jax.random.randint(jax.random.key(2), place.shape, 0, 19, jnp.int32)
    visible = transformer.Visibility(jnp.zeros_like(place), place + 1)
    return transformer.Query(tokens, place, place, visible)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, query, cache):
    return model.apply(params, query, cache)


def by_hand(params, group, query):
    """Layer by layer: hidden [B, Q, E] and the stream that each layer attends from."""
    stream = params["embed"][query.tokens]
    angles = layers.rotary(CONFIG.rope, CONFIG.head_dim, query.positions)
    plan, middle = [[0]], list(range(1, 3))
    while middle:
        plan.append(middle[:group])
        middle = middle[group:]
    for group_layers in [*plan, [3]]:
        begin = stream
        for layer in group_layers:
            block = params[f"layer_{layer}"]
            normed = layers.applied(layers.norm(CONFIG), block["attention_norm"], begin)
            heard, _ = layers.applied(
                layers.Attention(CONFIG), block["attention"], normed, angles,
                query.visible, None, None,
            )  # fmt: skip
            stream = stream + heard
            normed = layers.applied(layers.norm(CONFIG), block["mlp_norm"], stream)
            stream = stream + layers.applied(layers.Mlp(CONFIG), block["mlp"], normed)
    return layers.applied(layers.norm(CONFIG), params["norm"], stream)


@pytest.mark.parametrize("group", [1, 2])
def test_groups_attend_from_where_they_begin(group):
    asked = query()
    model = transformer.layer_parallel(MODEL, group)
    empty = model.init_cache(PROMPT._replace(tokens=PROMPT.tokens[:2]), 8)
    output, cache = apply(model, OWN, asked, empty)
    wanted = jax.jit(by_hand, static_argnums=1)(OWN, group, asked)
    np.testing.assert_allclose(output.hidden, wanted, atol=2e-5)
    exact, whole = apply(MODEL, OWN, asked, empty)
    same = all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(whole))
    )
    assert same == (group == 1) == np.array_equal(output.hidden, exact.hidden)


def test_a_group_of_one_is_every_kind_of_layer():
    config = dataclasses.replace(
        CONFIG,
        num_layers=3,
        experts=transformer.Experts(num_experts=3, top_k=2, width=8),
        post_norms=True,
        sliding=(True, False, True),
        window=3,
    )
    params = transformer.init(config, jax.random.key(1))
    model = transformer.make_model(config)
    empty = model.init_cache(PROMPT._replace(tokens=PROMPT.tokens[:2]), 8)
    wanted = apply(model, params, query(), empty)
    found = apply(transformer.layer_parallel(model, 1), params, query(), empty)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@functools.partial(jax.jit, static_argnums=(0, 1))
def decoded(group, keeps_drafts, temperature):
    """(generation, stats, last state) of drafts by layers in groups."""
    drafter = transformer.layer_parallel(MODEL, group)
    sampling = Sampling(temperature)
    decoder = speculative.draft_verify(
        MODEL,
        causal.draft_model(
            drafter, trees.chain(4), sampling, draws="coupled",
            keeps_drafts=keeps_drafts,
        ),
        max_new_tokens=15,
        sampling=sampling,
    )  # fmt: skip
    if not keeps_drafts:
        decoder = methods.easy_spec(
            MODEL, drafter, max_new_tokens=15, num_draft=4, acceptance="coupled",
            temperature=temperature,
        )  # fmt: skip
    state, stats = decode_module.decode_state(
        decoder, PARAMS, PROMPT, jax.random.key(0)
    )
    return decode_module.finish(decoder, state), stats, state


def test_drafts_of_layers_side_by_side_change_no_token():
    for temperature in (0.0, 1.0):
        wanted, slow = run(
            methods.autoregressive, MODEL, OWN, PROMPT, jax.random.key(0),
            knobs={"temperature": temperature}, max_new_tokens=15,
        )  # fmt: skip
        calls = []
        for group in (1, 2):
            out, stats, _ = decoded(group, False, temperature)
            np.testing.assert_array_equal(out.tokens, wanted.tokens)
            calls.append(int(stats.num_calls.sum()))
        # The drafter has the target's weights: exact, all it says is accepted.
        assert calls[0] <= calls[1] < slow.num_calls.sum()
        assert calls[0] == sum(-(-n // 5) for n in (14, 15, 9))


def error_of_the_drafter(keeps_drafts):
    """How far what the drafter takes for stored is from a fresh, exact prefill."""
    state = decoded(2, keeps_drafts, 0.0)[2]
    tokens, written = np.asarray(state.prefix.tokens), np.asarray(state.drafter.written)
    length = np.minimum(np.asarray(state.prefix.length), written)
    text = [row[:n].tolist() for row, n in zip(tokens, length)]
    fresh = prompts.from_rows(text, max_new_tokens=1, pad_to=tokens.shape[1])
    slots = jax.tree.leaves(state.drafter.cache)[0].shape[2]
    wanted = prefilled(fresh, slots)
    return max(
        float(np.abs(mine[b, :, :n] - its[b, :, :n]).max())
        for mine, its in zip(
            jax.tree.leaves(state.drafter.cache), jax.tree.leaves(wanted)
        )
        for b, n in enumerate(length)
    )


@functools.partial(jax.jit, static_argnums=1)
def prefilled(text, slots):
    return prompts.prefill(MODEL, OWN, text, MODEL.init_cache(text, slots))[1]


def test_each_round_begins_on_an_exact_cache():
    assert error_of_the_drafter(False) < 1e-5
    # Negative control: drafts that stay where they were drafted.
    assert error_of_the_drafter(True) > 1e-2


def test_what_cannot_run_side_by_side_is_refused():
    with pytest.raises(ValueError, match="group=0 must be"):
        transformer.layer_parallel(MODEL, 0)
    tapped = dataclasses.replace(CONFIG, taps=("layer_0",))
    with pytest.raises(ValueError, match="taps"):
        transformer.layer_parallel(transformer.make_model(tapped), 2)
    wrapped = transformer.shifted(MODEL, CONFIG.width)
    with pytest.raises(ValueError, match="no plain transformer"):
        transformer.layer_parallel(wrapped, 2)
