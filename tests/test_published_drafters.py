"""Medusa and EAGLE files, random ones in the published layout, as methods take them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.checkpoints import drafters, tensors
from pdecode.contracts import Query, Visibility
from pdecode.decode import run
from pdecode.models import draft_layers, transformer
from pdecode.models.config import Config

SIZES = Config(vocab_size=9, width=8, num_layers=2, num_heads=2, mlp_width=12)
MODEL = transformer.make_model(SIZES)
TARGET = transformer.init(SIZES, jax.random.key(0))
PROMPT = prompts.from_rows([[1, 4, 0], [3, 8]], max_new_tokens=8)
GIVEN = {
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 10, "rms_norm_eps": 1e-6, "num_hidden_layers": 1,
}  # fmt: skip


def save(folder, given, **shapes):
    """A folder with random tensors of these shapes, and the tensors."""
    gen = np.random.default_rng(0)
    arrays = {
        name: gen.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(given))
    return arrays


def layer_shapes(prefix, width):
    """Of a layer of 4 query and 2 key heads of size 2, by the authors' names."""
    return {
        f"{prefix}self_attn.q_proj.weight": (8, width),
        f"{prefix}self_attn.k_proj.weight": (4, width),
        f"{prefix}self_attn.v_proj.weight": (4, width),
        f"{prefix}self_attn.o_proj.weight": (8, 8),
        f"{prefix}mlp.gate_proj.weight": (10, 8),
        f"{prefix}mlp.up_proj.weight": (10, 8),
        f"{prefix}mlp.down_proj.weight": (8, 10),
        f"{prefix}post_attention_layernorm.weight": (8,),
    }


def assert_lossless(method, record, role, own, model=MODEL, **sizes):
    key = jax.random.key(1)
    common = {"max_new_tokens": 8, "knobs": {"temperature": 1.0}}
    plain, _ = run(methods.autoregressive, MODEL, TARGET, PROMPT, key, **common)
    ahead, stats = run(
        method, (model, record), {"model": TARGET, role: own}, PROMPT, key,
        **sizes, **common,
    )  # fmt: skip
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)
    assert stats.num_proposed.sum() > 0


def silu(x):
    return x / (1 + np.exp(-x))


def test_medusa_heads_say_what_their_file_does(tmp_path):
    shapes = {}
    for head in range(2):
        for block in range(2):
            shapes[f"{head}.{block}.linear.weight"] = (8, 8)
            shapes[f"{head}.{block}.linear.bias"] = (8,)
        shapes[f"{head}.2.weight"] = (9, 8)
    arrays = save(tmp_path, {"medusa_num_heads": 2}, **shapes)
    tensors.write(tmp_path / "medusa_lm_head.safetensors", arrays)
    heads, own = drafters.medusa_heads(tmp_path)
    state = np.random.default_rng(1).normal(size=8).astype(np.float32)
    ahead = heads.apply(own, jnp.asarray(state)[None])
    each = heads.own_heads(own, MODEL.head(TARGET))
    for head in range(2):
        value = state
        for block in range(2):
            name = f"{head}.{block}.linear"
            value = value + silu(
                arrays[f"{name}.weight"] @ value + arrays[f"{name}.bias"]
            )
        expected = arrays[f"{head}.2.weight"] @ value
        found = ahead[0, head] @ each[head].weight.T
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert_lossless(methods.medusa, heads, "heads", own, branching=(3, 2))


def first_lane(layer, own, token, feature):
    """The layer on one pair: attention sees itself alone, so it passes values on."""
    one = jnp.zeros((1, 1), jnp.int32)
    query = Query(one + token, one, None, Visibility(one, one + 1), feature[None, None])
    return np.asarray(layer.apply(own, TARGET, query, None)[0])[0, 0]


def rms(x, weight=1.0):
    return x / np.sqrt((x**2).mean() + 1e-6) * weight


def one_pair_by_hand(arrays, prefix, joined, stream):
    """A layer of the file on one pair in numpy; `joined` is what attention reads."""

    def named(name):
        return arrays[f"{prefix}{name}.weight"]

    value = (named("self_attn.v_proj") @ joined).reshape(2, 2)
    spread = np.repeat(value, 2, 0).reshape(-1)  # two query heads a key head
    stream = stream + named("self_attn.o_proj") @ spread
    normed = rms(stream, named("post_attention_layernorm"))
    inner = silu(named("mlp.gate_proj") @ normed) * (named("mlp.up_proj") @ normed)
    return stream + named("mlp.down_proj") @ inner


@pytest.mark.parametrize("has_bias", [True, False])
def test_an_eagle_layer_says_what_its_file_does(tmp_path, has_bias):
    shapes = layer_shapes("layers.0.", 8) | {
        "fc.weight": (8, 16), "embed_tokens.weight": (9, 8),
    }  # fmt: skip
    if has_bias:
        shapes["fc.bias"] = (8,)
    arrays = save(tmp_path, GIVEN, **shapes)
    tensors.write(tmp_path / "model.safetensors", arrays)
    layer, own = drafters.eagle_layer(tmp_path, SIZES)
    feature = np.random.default_rng(1).normal(size=8).astype(np.float32)
    joined = np.concatenate([np.asarray(TARGET["embed"])[5], feature])
    stream = arrays["fc.weight"] @ joined + arrays.get("fc.bias", 0)
    expected = one_pair_by_hand(arrays, "layers.0.", stream, stream)
    found = first_lane(layer, own, 5, jnp.asarray(feature))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    if has_bias:
        assert_lossless(methods.eagle, layer, "layer", own, branching=(2, 2))
        wide = Config(vocab_size=9, width=16, num_layers=2, num_heads=2)
        with pytest.raises(ValueError, match=r"hidden_size=8, but .* has width 16"):
            drafters.eagle_layer(tmp_path, wide)


def test_an_eagle3_layer_says_what_its_file_does(tmp_path):
    """Also that what its vocabulary leaves out is never drafted."""
    shapes = layer_shapes("midlayer.", 16) | {
        "midlayer.input_layernorm.weight": (8,), "midlayer.hidden_norm.weight": (8,),
        "fc.weight": (8, 24), "norm.weight": (8,), "lm_head.weight": (4, 8),
    }  # fmt: skip
    arrays = save(tmp_path, GIVEN, **shapes)
    ids = np.array([1, 3, 4, 8])
    arrays["d2t"], arrays["t2d"] = ids - np.arange(4), np.isin(np.arange(9), ids)
    tensors.write(tmp_path / "model.safetensors", arrays)
    layer, own = drafters.eagle_layer(tmp_path, SIZES)
    assert layer.taps == draft_layers.default_taps(2)
    feature = np.random.default_rng(1).normal(size=8).astype(np.float32)
    token = np.asarray(TARGET["embed"])[5]
    joined = np.concatenate(
        [
            rms(token, arrays["midlayer.input_layernorm.weight"]),
            rms(feature, arrays["midlayer.hidden_norm.weight"]),
        ]
    )
    expected = one_pair_by_hand(arrays, "midlayer.", joined, feature)
    found = first_lane(layer, own, 5, jnp.asarray(feature))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    hidden, head = layer.law(own, TARGET, jnp.asarray(found))
    raw = np.asarray(head.weight @ hidden + head.bias)
    few = arrays["lm_head.weight"] @ rms(expected, arrays["norm.weight"])
    np.testing.assert_allclose(raw[ids], few, rtol=1e-3, atol=1e-3)
    assert (np.delete(raw, ids) < -1e29).all()
    tapped = MODEL.tapped(layer.taps)
    assert_lossless(
        methods.eagle2, layer, "layer", own, model=tapped, num_nodes=6, width=3,
        max_depth=3,
    )  # fmt: skip
