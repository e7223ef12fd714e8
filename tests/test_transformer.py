"""The transformer: one set of parameters, any way of calling it, the same numbers."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdecode import cache as caches
from pdecode.contracts import Prompt, Query, Visibility
from pdecode.models import layers, transformer

TINY = transformer.Config(
    vocab_size=19, width=16, num_layers=3, num_heads=4, num_kv_heads=2, mlp_width=24
)
VARIANTS = {
    "llama": TINY,
    "qwen": dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, tied=True),
    "gpt2": dataclasses.replace(
        TINY,
        rope=None,
        max_positions=40,
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
    ),
    "gemma": dataclasses.replace(
        TINY,
        num_layers=4,
        sliding=(True, False) * 2,
        window=4,
        rope_sliding=transformer.Rope(theta=100.0),
        norm_offset=1.0,
        post_norms=True,
        embed_scale=4.0,
        attention_soft_cap=5.0,
        activation="gelu_tanh",
        tied=True,
    ),
    "moe": dataclasses.replace(
        TINY, experts=transformer.Experts(num_experts=5, top_k=2, width=8)
    ),
    "masked": dataclasses.replace(
        TINY, attention="bidirectional", predicts="masked", mask_id=18
    ),
    "block": dataclasses.replace(
        TINY, attention="block_causal", block_len=3, predicts="masked", mask_id=18
    ),
}


@functools.partial(jax.jit, static_argnames=("model",))
def apply(model, params, query, cache):
    return model.apply(params, query, cache)


@functools.cache
def init(config):
    return jax.jit(transformer.init, static_argnums=0)(config, jax.random.key(1))


forward = jax.jit(transformer.forward, static_argnames=("config", "train"))


def prompt_of(tokens):
    batch, length = tokens.shape
    full = jnp.full((batch,), length, jnp.int32)
    return Prompt(tokens, full, jnp.arange(batch), full)


def tokens_of(shape, seed=0, vocab=18):
    return jax.random.randint(jax.random.key(seed), shape, 0, vocab, jnp.int32)


def setup(config, batch=2, length=9, slots=14):
    params = init(config)
    model = transformer.make_model(config)
    tokens = tokens_of((batch, length))
    return model, params, tokens, model.init_cache(prompt_of(tokens), slots)


def causal_query(tokens, first):
    length = tokens.shape[1]
    index = jnp.broadcast_to(first + jnp.arange(length, dtype=jnp.int32), tokens.shape)
    return Query(tokens, index, index, Visibility(jnp.zeros_like(index), index + 1))


@pytest.mark.parametrize("name", VARIANTS)
def test_training_forward_equals_a_decoding_call(name):
    config = VARIANTS[name]
    model, params, tokens, cache = setup(config)
    visible, positions = transformer.sequence_visibility(config, tokens)
    query = Query(tokens, positions, positions, visible)
    want = apply(model, params, query, cache)[0].hidden
    for train in (True, False):
        got = forward(config, params, tokens, train=train).hidden
        np.testing.assert_allclose(got, want, atol=1e-5)
    scanned = jax.make_jaxpr(lambda p: forward(config, p, tokens).hidden)(params)
    assert "scan" in str(scanned)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "moe"])
def test_chunked_prefill_equals_one_call(name):
    model, params, tokens, cache = setup(VARIANTS[name])
    want, whole = apply(model, params, causal_query(tokens, 0), cache)
    parts = []
    for first, last in ((0, 4), (4, 5), (5, 9)):
        query = causal_query(tokens[:, first:last], first)
        output, cache = apply(model, params, query, cache)
        parts.append(output.hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), want.hidden, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, whole)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_tree_lanes_equal_the_path_they_stand_for(name):
    model, params, tokens, cache = setup(VARIANTS[name], slots=20)
    prefix = tokens.shape[1]
    _, cache = apply(model, params, causal_query(tokens, 0), cache)
    #   lane  0  1  2  3  4     root with children 1 and 2, 3 under 1, 4 under 3
    parents = [-1, 0, 0, 1, 3]
    paths = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 3, 4]]
    depth = jnp.array([len(path) - 1 for path in paths], jnp.int32)
    among = np.zeros((5, 5), bool)
    for lane, path in enumerate(paths):
        among[lane, path] = True
        assert len(path) == 1 or path[-2] == parents[lane]
    nodes = tokens_of((2, 5), seed=7)
    query = Query(
        nodes,
        jnp.broadcast_to(prefix + depth, (2, 5)),
        jnp.broadcast_to(prefix + jnp.arange(5, dtype=jnp.int32), (2, 5)),
        Visibility(
            jnp.zeros((2, 5), jnp.int32),
            jnp.full((2, 5), prefix, jnp.int32),
            None,
            jnp.broadcast_to(jnp.asarray(among), (2, 5, 5)),
        ),
    )
    output, cache = apply(model, params, query, cache)
    for lane, path in enumerate(paths):
        text = jnp.concatenate([tokens, nodes[:, jnp.array(path)]], axis=1)
        want = forward(VARIANTS[name], params, text).hidden[:, -1]
        np.testing.assert_allclose(output.hidden[:, lane], want, atol=1e-5)
    # Compaction: the deepest path moves next to the prefix and decoding goes on.
    path = jnp.broadcast_to(prefix + jnp.array(paths[-1], jnp.int32), (2, 4))
    target = jnp.broadcast_to(prefix + jnp.arange(4, dtype=jnp.int32), (2, 4))
    cache = model.move(cache, path, target)
    last = tokens_of((2, 1), seed=8)
    got, _ = apply(model, params, causal_query(last, prefix + 4), cache)
    text = jnp.concatenate([tokens, nodes[:, jnp.array(paths[-1])], last], axis=1)
    want = forward(VARIANTS[name], params, text).hidden[:, -1:]
    np.testing.assert_allclose(got.hidden, want, atol=1e-5)


def test_move_reads_all_sources_first_and_drops():
    leaf = jnp.arange(2 * 1 * 6 * 1, dtype=jnp.float32).reshape(2, 1, 6, 1)
    source = jnp.array([[0, 1, 2, 3], [5, 4, 0, 0]], jnp.int32)
    target = jnp.array([[1, 2, 3, 6], [0, 5, 99, 6]], jnp.int32)
    got = caches.move(leaf, source, target)[:, 0, :, 0]
    np.testing.assert_array_equal(got, [[0, 0, 1, 2, 4, 5], [11, 7, 8, 9, 10, 10]])


def test_unstored_lanes_change_nothing():
    model, params, tokens, cache = setup(TINY)
    want, filled = apply(model, params, causal_query(tokens, 0), cache)
    padded = jnp.concatenate([tokens, tokens[:, :3]], axis=1)
    query = causal_query(padded, 0)
    slots = jnp.where(jnp.arange(12) < 9, query.slots, 14 + jnp.arange(12))
    got, again = apply(model, params, query._replace(slots=slots), cache)
    np.testing.assert_allclose(got.hidden[:, :9], want.hidden, atol=1e-5)
    assert np.all(np.isfinite(got.hidden))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), filled, again
    )
    np.testing.assert_array_equal(again[0]["k"][:, :, 9:], 0)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    width=st.sampled_from([7, 9]),
    name=st.sampled_from(["gemma", "masked", "moe"]),
)
def test_a_row_does_not_depend_on_its_batch_or_padding(lengths, width, name):
    config = VARIANTS[name]
    params = init(config)
    tokens = tokens_of((3, 9), seed=3)[:, :width]
    inside = jnp.arange(width)[None] < jnp.array(lengths)[:, None]
    segments = jnp.where(inside, 0, -1)
    batch = forward(config, params, tokens, segments=segments, train=False).hidden
    other = jnp.where(inside, tokens, 11)
    for row, length in enumerate(lengths):
        alone = forward(
            config,
            params,
            other[row : row + 1],
            segments=segments[row : row + 1],
            train=False,
        ).hidden
        np.testing.assert_allclose(batch[row, :length], alone[0, :length], atol=1e-5)


def test_padding_is_as_good_as_nothing():
    config = VARIANTS["masked"]
    params = init(config)
    tokens = tokens_of((2, 9), seed=3)
    segments = jnp.broadcast_to(jnp.where(jnp.arange(9) < 5, 0, -1), (2, 9))
    padded = forward(config, params, tokens, segments=segments, train=False).hidden
    short = forward(config, params, tokens[:, :5], train=False).hidden
    np.testing.assert_allclose(padded[:, :5], short, atol=1e-5)


def test_packed_segments_equal_their_parts():
    for name in ("llama", "masked", "block"):
        config = VARIANTS[name]
        params = init(config)
        tokens = tokens_of((1, 10))
        segments = jnp.array([[4, 4, 4, 4, 4, 9, 9, 9, -1, -1]], jnp.int32)
        packed = forward(config, params, tokens, segments=segments).hidden
        for first, last in ((0, 5), (5, 8)):
            alone = forward(config, params, tokens[:, first:last]).hidden
            np.testing.assert_allclose(packed[:, first:last], alone, atol=1e-5)


def test_taps_are_the_stream_between_layers():
    config = dataclasses.replace(TINY, taps=("embed", "layer_2"))
    model, params, tokens, cache = setup(config)
    query = causal_query(tokens, 0)
    found, _ = apply(model, params, query, cache)
    assert set(found.taps) == {"embed", "layer_2"}
    np.testing.assert_array_equal(found.taps["embed"], params["embed"][tokens])
    # The last layer's stream, normalised, is what comes out.
    stream = found.taps["layer_2"]
    scale = jax.lax.rsqrt(jnp.mean(stream**2, -1, keepdims=True) + 1e-6)
    wanted = stream * scale * params["norm"]["weight"][None, None]
    np.testing.assert_allclose(found.hidden, wanted, atol=1e-5)


def test_extra_is_added_where_there_is_one():
    model, params, tokens, cache = setup(TINY)
    query = causal_query(tokens, 0)
    extra = jax.random.normal(jax.random.key(5), (2, 9, 16))
    has = jnp.arange(9)[None] % 2 == jnp.arange(2)[:, None]
    plain = apply(model, params, query, cache)[0].hidden
    none = query._replace(extra=extra, has_extra=jnp.zeros_like(has))
    np.testing.assert_array_equal(apply(model, params, none, cache)[0].hidden, plain)
    some = query._replace(extra=extra, has_extra=has)
    same = {**params, "embed": jnp.zeros_like(params["embed"])}
    got = apply(model, same, some, cache)[0].hidden
    by_hand = query._replace(extra=jnp.where(has[:, :, None], extra, 0))
    np.testing.assert_array_equal(apply(model, same, by_hand, cache)[0].hidden, got)
    assert not np.allclose(apply(model, params, some, cache)[0].hidden, plain)


def test_shift_reads_the_slot_to_the_left():
    config = dataclasses.replace(VARIANTS["masked"], shift=True)
    model, params, tokens, cache = setup(config)
    assert model is transformer.make_model(dataclasses.replace(config))
    raw = forward(config, params, tokens).hidden
    index = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (2, 9))
    bounds = Visibility(jnp.zeros_like(index), jnp.full_like(index, 9))
    out, cache = apply(model, params, Query(tokens, index, index, bounds), cache)
    want = jnp.concatenate([raw[:, :1], raw[:, :-1]], axis=1)
    np.testing.assert_allclose(out.hidden, want, atol=1e-5)
    # A window with its tokens unchanged: its first lane still knows its neighbour.
    part = index[:, 4:7]
    window = Query(
        tokens[:, 4:7], part, part, Visibility(part * 0, jnp.full_like(part, 9))
    )
    again, cache = apply(model, params, window, cache)
    np.testing.assert_allclose(again.hidden, want[:, 4:7], atol=1e-5)
    cache = model.move(cache, index[:, 4:5], index[:, 1:2])
    np.testing.assert_array_equal(cache["hidden"][:, :, 1], cache["hidden"][:, :, 4])


def test_equal_configurations_make_one_model():
    again = dataclasses.replace(TINY)
    assert transformer.make_model(again) is transformer.make_model(TINY)
    hash(transformer.make_model(TINY))


@pytest.mark.thorough
def test_gradients_reach_every_parameter():
    for name in ("qwen", "gpt2", "gemma", "moe"):
        config = VARIANTS[name]
        params = init(config)
        tokens = tokens_of((2, 6))

        def loss(params, config=config, tokens=tokens):
            hidden = forward(config, params, tokens).hidden
            head = transformer.make_model(config).head(params)
            logits = head.scale * hidden @ head.weight.T
            return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3])

        grads = jax.jit(jax.grad(loss))(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            # A key bias moves all scores of a query alike, without rotation.
            dead = name == "gpt2" and "'key'" in str(path) and "bias" in str(path)
            assert dead or np.any(leaf), (name, path)


def test_a_mixture_of_experts_against_one_expert_at_a_time():
    config = VARIANTS["moe"]
    block = init(config)["layer_0"]["mlp"]
    x = jax.random.normal(jax.random.key(2), (2, 7, 16))
    got = layers.Moe(config).apply({"params": block}, x)
    probs = jax.nn.softmax(x @ block["router"]["kernel"])
    for row, lane in np.ndindex(2, 7):
        top = np.argsort(-probs[row, lane])[:2]
        want = np.zeros(16)
        for expert in top:
            gate = jax.nn.silu(x[row, lane] @ block["gate"][expert])
            inner = gate * (x[row, lane] @ block["up"][expert])
            share = probs[row, lane, expert] / probs[row, lane, top].sum()
            want += share * (inner @ block["down"][expert])
        np.testing.assert_allclose(got[row, lane], want, atol=1e-5)


def test_configuration_errors():
    for changes, message in (
        (dict(num_kv_heads=3), "must divide"),
        (dict(taps=("layer_7",)), "known: embed, layer_0 .. layer_2"),
        (dict(attention="sideways"), "unknown attention 'sideways'"),
        (dict(attention="block_causal"), "block_len"),
        (dict(rope=None), "max_positions"),
        (dict(sliding=(True,)), "1 layers of 3"),
        (dict(rope=transformer.Rope(scaling="yarn")), "unknown rope scaling"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("name", ["llama", "gemma", "shifted"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_the_compiled_loop_never_copies_a_cache(name, lanes):
    config = (
        dataclasses.replace(VARIANTS["masked"], shift=True)
        if name == "shifted"
        else VARIANTS[name]
    )
    batch, slots, turns = 3, 23, 5  # nothing else has 23 of anything
    model, params, _, cache = setup(config, batch=batch, length=turns, slots=slots)

    def run(params, tokens, cache):
        def step(state):
            turn, tokens, cache = state
            index = turn * lanes + jnp.arange(lanes, dtype=jnp.int32)
            index = jnp.broadcast_to(index, tokens.shape)
            # A tree over the lanes, then compaction: both touch the cache in place.
            among = jnp.broadcast_to(jnp.eye(lanes, dtype=bool), (batch, lanes, lanes))
            visible = Visibility(index * 0, index * 0 + turn * lanes, None, among)
            output, cache = apply(
                model, params, Query(tokens, index, index, visible), cache
            )
            head = model.head(params)
            tokens = jnp.argmax(output.hidden @ head.weight.T, -1).astype(jnp.int32)
            # As in decoding, what moves depends on what the call said. A move that does
            # not could run before the reads, and then each cache is copied.
            cache = model.move(cache, index + tokens % 2, index)
            return turn + 1, tokens, cache

        return jax.lax.while_loop(
            lambda state: state[0] < turns, step, (0, tokens, cache)
        )

    tokens = tokens_of((batch, lanes))
    text = (
        jax.jit(run, donate_argnums=2).lower(params, tokens, cache).compile().as_text()
    )
    found = cache_sized_moves(text, batch, slots)
    assert not found, "\n".join(found)


def cache_sized_moves(text, batch, slots):
    """Copies and transposes of something with S slots, inside loop bodies."""
    found, computation = [], ""

    for line in text.splitlines():
        if line and not line.startswith(" "):
            entry = line.startswith("ENTRY")
            computation = line.split(" ")[0]
        match = re.search(r"= \w+\[([\d,]*)\]\S* (copy|transpose)\(", line)
        if match and not entry:
            shape = [int(n) for n in match[1].split(",") if n]
            if slots in shape and batch in shape and len(shape) == 4:
                found.append(f"{computation}: {line.strip()[:120]}")
    return found


def test_write_drops_what_is_past_the_end():
    cache = jnp.zeros((1, 2, 4, 3))
    new = jnp.arange(12.0).reshape(1, 2, 2, 3) + 1
    got = caches.write(cache, jnp.array([[3, 4]], jnp.int32), new)
    np.testing.assert_array_equal(got[0, :, 3], new[0, :, 0])
    np.testing.assert_array_equal(got[0, :, :3], 0)
