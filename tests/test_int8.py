"""Weights and caches of eight bits: what they stand for, and what still holds."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pdecode import cache as caches
from pdecode import checkpoints, generation, methods, prompts, sharding
from pdecode.contracts import Query, SlotRun, Visibility
from pdecode.decode import run
from pdecode.evals import quality, tasks
from pdecode.models import config as config_module
from pdecode.models import fusing, int8, transformer

GOLDEN = pathlib.Path(__file__).parent / "golden"
CONFIG = transformer.Config(
    vocab_size=19, width=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=24
)
MODEL = transformer.make_model(CONFIG)
CODED = int8.int8_cache(MODEL)
PARAMS = transformer.init(CONFIG, jax.random.key(0))
WEIGHTS = int8.weights(PARAMS)


@functools.partial(jax.jit, static_argnums=0)
def call(model, params, tokens, start, cache):
    """Hidden states of lanes behind `start` cached tokens, and the cache after them."""
    place = start + jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    query = Query(
        tokens,
        place,
        SlotRun(place[:, 0]),
        Visibility(jnp.zeros_like(place), place + 1),
    )
    output, cache = model.apply(params, query, cache)
    return output.hidden, cache


def read(model, params, tokens, widths):
    """Hidden states [B, T, E] of `tokens`, read in calls of these widths."""
    cache = model.init_cache(prompts.from_rows(tokens.tolist(), max_new_tokens=1), 12)
    found, start = [], 0
    for width in widths:
        part = tokens[:, start : start + width]
        hidden, cache = call(model, params, part, start, cache)
        found.append(hidden)
        start += width
    return np.concatenate(found, axis=1)


TOKENS = jax.random.randint(jax.random.key(3), (2, 9), 0, 19, jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_is_off_by_half_a_code(dtype):
    values = jax.random.normal(jax.random.key(1), (3, 2, 5, 16), dtype)
    codes = caches.int8(values)
    exact = codes.codes.astype(jnp.float32) * codes.scale.astype(jnp.float32)
    off = np.abs(exact - values.astype(jnp.float32))
    # The largest may be cut where its scale was rounded down, in bfloat16.
    spare = 0 if dtype == "float32" else 127 * 2.0**-8
    assert (off <= codes.scale.astype(np.float32) * (0.5001 + spare)).all()
    assert (off > codes.scale.astype(np.float32) / 4).any()
    assert not np.asarray(caches.floats(caches.int8(0 * values))).any()


def test_a_product_of_codes_is_that_of_the_weights_they_stand_for():
    def widened(part):
        if "scale" in part:
            part = {**part, "kernel": part["kernel"] * part["scale"][None]}
            part.pop("scale")
        inner = {name: x for name, x in part.items() if isinstance(x, dict)}
        return part | {name: widened(x) for name, x in inner.items()}

    assert WEIGHTS["layer_1"]["mlp"]["up"]["kernel"].dtype == jnp.int8
    assert WEIGHTS["embed"] is PARAMS["embed"]
    mine = read(MODEL, WEIGHTS, TOKENS, (9,))
    np.testing.assert_allclose(
        mine, read(MODEL, widened(WEIGHTS), TOKENS, (9,)), atol=1e-5
    )
    joined = read(MODEL, fusing.fused(WEIGHTS), TOKENS, (9,))
    np.testing.assert_allclose(mine, joined, atol=1e-5)
    again = read(MODEL, int8.weights(fusing.fused(PARAMS)), TOKENS, (9,))
    np.testing.assert_allclose(mine, again, atol=1e-5)
    # Negative control: they are not the weights themselves.
    assert np.abs(mine - read(MODEL, PARAMS, TOKENS, (9,))).max() > 1e-3


def test_what_is_stored_does_not_depend_on_the_call_that_stores_it():
    one, wide = (read(CODED, PARAMS, TOKENS, w) for w in ((1,) * 9, (4, 5)))
    np.testing.assert_allclose(one, wide, atol=1e-5)
    assert np.abs(one - read(MODEL, PARAMS, TOKENS, (9,))).max() > 1e-3


def test_a_call_that_reads_its_own_lanes_as_they_were_is_another_model(monkeypatch):
    """Negative control of the test above: what `store` gives back is what is read."""

    def store(leaf, slots, values):
        stored, _ = store_of(leaf, slots, values)
        return stored, values

    store_of = caches.store
    place = jnp.arange(4)[None]
    nothing, chain = jnp.zeros_like(place), jnp.tril(jnp.ones((1, 4, 4), bool))
    tree = Visibility(nothing, nothing, None, chain)
    query = Query(TOKENS[:1, :4], place, SlotRun(place[:, 0]), tree)
    empty = CODED.init_cache(prompts.from_rows([[1]], max_new_tokens=1), 8)

    def hidden():
        return np.asarray(
            jax.jit(lambda: CODED.apply(PARAMS, query, empty)[0].hidden)()
        )

    wanted = read(CODED, PARAMS, TOKENS[:1, :4], (1,) * 4)
    np.testing.assert_allclose(hidden(), wanted, atol=1e-5)
    monkeypatch.setattr(caches, "store", store)
    assert np.abs(hidden() - wanted).max() > 1e-3


@functools.partial(jax.jit, static_argnames=("method", "model", "sizes"))
def decoded(method, model, params, seed, sizes):
    prompt = prompts.from_rows([[1, 2, 3], [4]], max_new_tokens=12)
    return run(
        method, model, params, prompt, jax.random.key(seed), max_new_tokens=12,
        **dict(sizes),
    )  # fmt: skip


@pytest.mark.parametrize(
    "method, sizes",
    [
        (methods.prompt_lookup, (("num_draft", 3),)),
        (methods.token_recycling, (("widths", (2, 1)), ("num_top", 2))),
    ],
)
def test_lossless_methods_are_so_of_the_model_in_int8(method, sizes):
    plain = decoded(methods.autoregressive, CODED, WEIGHTS, 0, ())[0]
    found, stats = decoded(method, CODED, WEIGHTS, 0, sizes)
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_allclose(found.log_probs, plain.log_probs, atol=1e-4)
    assert (stats.num_calls < 12).any()
    # Negative control: of the model that it was made from they are not.
    other = decoded(methods.autoregressive, MODEL, PARAMS, 0, ())[0]
    assert np.abs(np.asarray(other.log_probs) - found.log_probs).max() > 1e-3


def test_taps_of_a_model_keep_its_cache_and_exits_are_refused():
    """EAGLE-3 asks for taps: that may not undo int8 keys and values."""
    prompt = prompts.from_rows([[1, 2]], max_new_tokens=1)
    assert CODED.tapped is not None and MODEL.tapped is not None
    cache = CODED.tapped(("layer_0",)).init_cache(prompt, 4)
    held = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, caches.Int8))
    assert held and all(isinstance(each, caches.Int8) for each in held)
    plain = jax.tree.leaves(MODEL.tapped(("layer_0",)).init_cache(prompt, 4))
    assert all(leaf.dtype != jnp.int8 for leaf in plain)
    exits = transformer.make_model(dataclasses.replace(CONFIG, exits=(1, 2)))
    with pytest.raises(ValueError, match="has no int8: load it without"):
        int8.int8_cache(exits)


def test_how_far_the_embedded_target_is_off():
    """The figures of docs/int8.md, on two texts of eight."""
    given = tasks.completions(2, max_prompt=64, min_reference=64)
    found = []
    for dtype in ("float32", "float32+int8", "float32+int8kv", "float32+int8+int8kv"):
        model, params, own = generation.load("target", dtype)
        rows = [own.encode(each.prompt) for each in given]
        texts = [own.encode(each.reference, bos=False)[:100] for each in given]
        made = quality.judge(quality.Judge(model, params, 2, 176), rows, texts)
        found.append(np.concatenate([each.log_probs for each in made]))
    for coded in found[1:]:
        off = np.abs(coded - found[0])
        assert 1e-4 < off.max() < 0.3 and off.mean() < 0.03
        assert abs(coded.mean() - found[0].mean()) < 0.01 * -found[0].mean()


def test_how_numbers_are_held_is_said_behind_the_dtype():
    held = config_module.held
    assert held(None) == (None, False, False)
    assert held("bfloat16+int8") == ("bfloat16", True, False)
    assert held("int8+int8kv") == (None, True, True)
    assert held("int8kv") == (None, False, True)
    for wrong in ("", "int4", "bfloat16+", "float32+int4", "int8+int8", "int8+float32"):
        with pytest.raises(ValueError, match="must be one of float32, bfloat16"):
            held(wrong)


def test_folders_are_loaded_in_int8():
    model, params, _ = checkpoints.load(GOLDEN / "llada_tiny", dtype="bfloat16+int8")
    plain = checkpoints.load(GOLDEN / "llada_tiny", dtype="bfloat16")
    assert model is plain[0] and int8.is_int8(params) and not int8.is_int8(plain[1])
    block = params["layer_0"]["attention"]["query"]
    assert block["kernel"].dtype == jnp.int8 and block["scale"].dtype == jnp.bfloat16
    mesh = sharding.make_mesh(tensor=2, devices=jax.devices()[:2])
    split = checkpoints.load(GOLDEN / "llada_tiny", dtype="bfloat16+int8", mesh=mesh)[1]
    jax.tree.map(np.testing.assert_array_equal, params, split)
    kernel = split["layer_0"]["attention"]["query"]
    assert kernel["kernel"].sharding.spec == PartitionSpec(None, "tensor")
    assert kernel["scale"].sharding.spec == PartitionSpec("tensor")
    cached = checkpoints.load(GOLDEN / "llada_tiny", dtype="int8kv")[0]
    made = cached.init_cache(prompts.from_rows([[1]], max_new_tokens=1), 4)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made)} >= {"int8"}


def test_what_has_no_int8_is_refused():
    with pytest.raises(ValueError, match=r"a cache of its own kind.*without \+int8kv"):
        checkpoints.load(GOLDEN / "diffusion_gemma_tiny", dtype="int8kv")
    with pytest.raises(ValueError, match=r"no layer .* without \+int8"):
        int8.weights({"embed": PARAMS["embed"]})
    with pytest.raises(ValueError, match="keeps eight bits already"):
        run(
            methods.quantspec, CODED, PARAMS,
            prompts.from_rows([[1]], max_new_tokens=4), jax.random.key(0),
            max_new_tokens=4, num_draft=3, group=4,
        )  # fmt: skip
