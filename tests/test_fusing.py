"""Fused projections: the numbers of separate ones, wherever parameters are read."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from test_transformer import TINY, VARIANTS, causal_query, prompt_of, tokens_of

from pdecode import assembly, checkpoints, methods, prompts
from pdecode.checkpoints import convert
from pdecode.cli import main as cli
from pdecode.decode import run
from pdecode.models import dit, fusing, quantized, reused, transformer
from pdecode.models.config import Experts
from pdecode.sharding import placement

KEY = jax.random.key(0)
GOLDEN = pathlib.Path(__file__).parent / "golden"
CONFIGS = {
    **{name: VARIANTS[name] for name in ("qwen", "gpt2", "gemma")},
    "one key head": dataclasses.replace(TINY, num_kv_heads=1, head_dim=6, mlp_width=7),
    "biases everywhere": dataclasses.replace(
        TINY, num_kv_heads=4, mlp_bias=True, qkv_bias=True, out_bias=True
    ),
    "masked": dataclasses.replace(
        VARIANTS["masked"], taps=("embed", "layer_1"), shift=True
    ),
    "shared experts": dataclasses.replace(
        TINY,
        dense_layers=1,
        experts=Experts(num_experts=4, top_k=2, width=8, shared_width=12),
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, query, cache):
    return model.apply(params, query, cache)


@functools.cache
def init(config):
    """Random parameters, biases and norms too, which begin as zeros and ones."""
    params = jax.jit(transformer.init, static_argnums=0)(config, jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise)])


def outputs(config, params):
    """What a call says and stores."""
    model, tokens = transformer.make_model(config), tokens_of((2, 7))
    cache = model.init_cache(prompt_of(tokens), 12)
    return apply(model, params, causal_query(tokens, 0), cache)


def distance(one, other):
    gaps = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), one, other)
    return max(float(gap) for gap in jax.tree.leaves(gaps))


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_projections_say_and_store_what_separate_ones_do(name):
    config = CONFIGS[name]
    params = init(config)
    joined = fusing.fused(params)
    assert fusing.is_fused(joined) and not fusing.is_fused(params)
    layer = joined[f"layer_{config.num_layers - 1}"]
    features = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    assert layer["attention"]["qkv"]["kernel"].shape == (config.width, features)
    assert not {"query", "key", "value"} & set(layer["attention"])
    assert ("gate_up" in layer["mlp"]) == (config.gated and config.experts is None)
    assert distance(outputs(config, params), outputs(config, joined)) < 2e-5
    sizes = [sum(x.size for x in jax.tree.leaves(each)) for each in (params, joined)]
    assert sizes[0] == sizes[1]


def test_the_first_layers_and_the_shared_expert_are_joined_beside_experts():
    config = CONFIGS["shared experts"]
    joined = fusing.fused(init(config))
    assert "gate_up" in joined["layer_0"]["mlp"]
    assert joined["layer_1"]["mlp"]["gate"].ndim == 3
    assert set(joined["layer_1"]["mlp"]["shared"]) == {"down", "gate_up"}


@pytest.mark.parametrize("branch, name", [("attention", "qkv"), ("mlp", "gate_up")])
def test_parts_in_another_order_are_another_model(branch, name):
    config = CONFIGS["biases everywhere"]
    joined = fusing.fused(init(config))
    whole = joined["layer_1"][branch][name]
    turned = jax.tree.map(lambda leaf: jnp.roll(leaf, config.width, -1), whole)
    wrong = {**joined["layer_1"], branch: {**joined["layer_1"][branch], name: turned}}
    got = outputs(config, {**joined, "layer_1": wrong})
    assert distance(outputs(config, joined), got) > 1e-2


def test_what_is_joined_already_stays_and_a_layer_at_a_time_is_the_same():
    params = init(VARIANTS["qwen"])
    joined = fusing.fused(params)
    jax.tree.map(np.testing.assert_array_equal, fusing.fused(joined), joined)
    given = dict(params)
    jax.tree.map(np.testing.assert_array_equal, fusing.fused_in_turn(given), joined)
    assert not given


def test_layers_that_run_in_groups_read_both():
    config = dataclasses.replace(TINY, num_layers=4, sliding=())
    model = transformer.layer_parallel(transformer.make_model(config), 2)
    tokens = tokens_of((1, 5))
    cache = model.init_cache(prompt_of(tokens), 8)
    query = causal_query(tokens, 0)
    got = [
        apply(model, params, query, cache)
        for params in (init(config), fusing.fused(init(config)))
    ]
    assert distance(*got) < 2e-5


def test_grids_of_four_bits_are_those_of_the_parts():
    params = init(TINY)
    joined = fusing.fused(params)
    want = fusing.fused(quantized.narrow(params))
    jax.tree.map(np.testing.assert_array_equal, quantized.narrow(joined), want)


def test_other_networks():
    # Built of the same parts: joined. Built otherwise: as they are.
    config = dit.Config(vocab_size=19, width=16, num_layers=1, num_heads=2, mlp_width=8)
    layer = fusing.fused(dit.init(config, jax.random.key(0)))["layer_0"]
    assert "qkv" in layer["attention"] and "up" in layer["mlp"]
    params = checkpoints.load(GOLDEN / "diffusion_gemma_tiny")[1]
    jax.tree.map(np.testing.assert_array_equal, fusing.fused(params), params)


def test_a_network_that_reads_projections_one_by_one_refuses():
    config = VARIANTS["masked"]
    model = reused.reused(config, prompt_every=2, response_every=2, num_updated=2)
    made = prompts.from_rows([[1, 2]], max_new_tokens=4, model=model)
    with pytest.raises(ValueError, match=r"reused transformer needs .*fused=False"):
        run(
            methods.llada, model, fusing.fused(init(config)), made, jax.random.key(0),
            max_new_tokens=4, steps=4,
        )  # fmt: skip


def test_meshes():
    shapes = jax.eval_shape(lambda: fusing.fused(transformer.init(TINY, KEY)))
    where = placement.specs(shapes, AbstractMesh((2, 2), ("data", "fsdp")))
    layer = where["layer_0"]
    assert layer["attention"]["qkv"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert layer["mlp"]["gate_up"]["kernel"].spec == PartitionSpec("fsdp", None)
    biased = jax.eval_shape(
        lambda: fusing.fused(transformer.init(VARIANTS["qwen"], KEY))
    )
    bias = placement.specs(biased, AbstractMesh((2,), ("fsdp",)))["layer_0"]
    assert bias["attention"]["qkv"]["bias"].spec == PartitionSpec(None)
    mesh = AbstractMesh((2, 2), ("data", "tensor"))
    with pytest.raises(ValueError, match=r"split over tensor=2: load .*fused=False"):
        placement.specs(shapes, mesh)
    with pytest.raises(ValueError, match="tensor=2"):
        assembly.load("target", None, mesh, True)
    with pytest.raises(ValueError, match="tensor=2"):
        checkpoints.load(GOLDEN / "llada_tiny", mesh=mesh, fused=True)


def test_folders_are_loaded_fused_by_name(tmp_path):
    folder = GOLDEN / "llada_tiny"
    model, params, _ = checkpoints.load(folder)
    again, joined, _ = checkpoints.load(folder, fused=True)
    assert again is model and not fusing.is_fused(params)
    jax.tree.map(np.testing.assert_array_equal, joined, fusing.fused(params))
    convert.convert(folder, tmp_path / "kept")
    other = checkpoints.load(tmp_path / "kept", fused=True)[1]
    jax.tree.map(np.testing.assert_array_equal, joined, other)


def test_a_gpu_gets_them_by_default_and_a_cpu_only_by_name(monkeypatch):
    assert not fusing.is_fused(assembly.load("drafter")[1])
    assert fusing.is_fused(assembly.load("drafter", fused=True)[1])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fusing.by_default(None)
    assert not fusing.by_default(AbstractMesh((2,), ("data",)))
    assert fusing.is_fused(assembly.load("drafter")[1])
    assert not fusing.is_fused(assembly.load("drafter", fused=False)[1])


def test_the_command_line_says_which(capsys):
    words = ["generate", "--model", "drafter", "--prompt", "def", "--json"]
    words += ["--max-new-tokens", "8"]
    told = []
    for option in ("--fused", "--no-fused"):
        assert cli.main([*words, option]) == 0
        told.append(json.loads(capsys.readouterr().out)["tokens"])
    assert told[0] == told[1]
