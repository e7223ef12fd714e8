"""One trace, every platform: what attention becomes where the program is lowered for.

Programs for TPU are compiled here without one when libtpu is installed (the tpu-aot
extra); nothing says how fast they are.
"""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from pdecode.contracts import Head, Sampling, Visibility
from pdecode.kernels.attention import api as kernel
from pdecode.kernels.head import api as vocab_head

MOSAIC = "tpu_custom_call"
KERNEL = functools.partial(kernel.attention, scale=0.1)

# batch, queries, heads, key heads, slots, head width, dtype, written, among, soft cap
CALLS = {
    "one query": (8, 1, 32, 8, 4096, 128, jnp.bfloat16, False, False, None),
    "a tree": (8, 61, 28, 4, 2048, 128, jnp.bfloat16, True, True, None),
    "a canvas": (2, 1000, 8, 8, 1000, 64, jnp.float32, True, False, 30.0),
    "one key head": (2, 16, 32, 1, 2048, 256, jnp.bfloat16, False, True, None),
}


def shapes(batch, queries, heads, kv, slots, dim, dtype, written, among):
    struct = jax.ShapeDtypeStruct
    lanes = struct((batch, queries), jnp.int32)
    visible = Visibility(
        lanes,
        lanes,
        struct((batch, slots), bool) if written else None,
        struct((batch, queries, queries), bool) if among else None,
    )
    cache = struct((batch, kv, slots, dim), dtype)
    new = struct((batch, kv, queries, dim), dtype)
    return struct((batch, queries, heads, dim), dtype), cache, cache, visible, new, new


def traced(name, **options):
    *sizes, soft_cap = CALLS[name]
    function = functools.partial(KERNEL, soft_cap=soft_cap, **options)
    return jax.jit(function).trace(*shapes(*sizes))


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_follows_the_platform_of_the_program(name):
    trace = traced(name)
    for platform in ("tpu", "cuda", "cpu"):
        text = trace.lower(lowering_platforms=(platform,)).as_text()
        assert (MOSAIC in text) == (platform == "tpu"), platform


def test_a_choice_by_name_is_kept():
    plain = traced("a tree", implementation="xla").lower(lowering_platforms=("tpu",))
    assert MOSAIC not in plain.as_text()
    forced = traced("a tree", implementation="pallas_tpu")
    assert MOSAIC in forced.lower(lowering_platforms=("tpu",)).as_text()
    with pytest.raises(Exception, match="interpret mode is supported on CPU"):
        forced.lower(lowering_platforms=("cpu",))


@pytest.mark.parametrize("name", CALLS)
def test_the_gpu_kernel_lowers_for_cuda(name):
    device = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):  # which wants to know the GPU
        gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
        mesh = AbstractMesh((1,), ("x",), abstract_device=gpu)
        device = jax.sharding.use_abstract_mesh(mesh)
    with device:
        trace = traced(name, implementation="pallas_gpu")
        text = trace.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text and MOSAIC not in text


def test_short_caches_and_float64_take_the_plain_path_everywhere():
    short = shapes(2, 4, 4, 2, kernel.MIN_KERNEL_SLOTS - 1, 64, jnp.float32, True, True)
    with jax.enable_x64(True):
        double = shapes(2, 4, 4, 2, 4096, 64, jnp.float64, True, True)
        for call in (short, double):
            lowered = jax.jit(KERNEL).trace(*call).lower(lowering_platforms=("tpu",))
            assert MOSAIC not in lowered.as_text()
        with pytest.raises(NotImplementedError, match="not float64"):
            jax.eval_shape(
                functools.partial(KERNEL, implementation="pallas_tpu"), *double
            )


def test_training_lowers_with_the_kernel_in_it():
    def loss(*arrays):
        return KERNEL(*arrays).astype(jnp.float32).sum()

    *sizes, _ = CALLS["a tree"]
    trace = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(*shapes(*sizes))
    assert MOSAIC in trace.lower(lowering_platforms=("tpu",)).as_text()
    assert MOSAIC not in trace.lower(lowering_platforms=("cpu",)).as_text()


def test_on_cpu_no_choice_is_left_in_the_program():
    call = shapes(1, 2, 3, 1, kernel.MIN_KERNEL_SLOTS, 8, jnp.float32, False, False)
    program = jax.jit(KERNEL).lower(*call).compile().as_text()
    assert " conditional(" not in program


@pytest.fixture
def chips(monkeypatch):
    """Eight TPU devices to compile for, of a machine that is not there."""
    pytest.importorskip("libtpu", reason="compiling for TPU needs the tpu-aot extra")
    # libtpu ends the process at a flag of the host's compiler, which has read it here.
    jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return topologies.get_topology_desc("v5e:2x4", platform="tpu").devices


@pytest.mark.tpu_aot
@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_compiles_for_tpu(chips, name):
    *sizes, soft_cap = CALLS[name]
    device = SingleDeviceSharding(chips[0])
    call = jax.tree.map(lambda leaf: leaf.update(sharding=device), shapes(*sizes))
    lowered = jax.jit(functools.partial(KERNEL, soft_cap=soft_cap)).trace(*call)
    compiled = lowered.lower(lowering_platforms=("tpu",)).compile()
    assert MOSAIC in compiled.as_text()


@pytest.mark.tpu_aot
def test_rows_and_heads_are_split_over_a_tpu_mesh(chips):
    mesh = Mesh(np.array(chips).reshape(2, 4), ("data", "tensor"))
    *sizes, _ = CALLS["a tree"]
    query, keys, values, visible, *new = shapes(*sizes)

    def place(leaf, *spec):
        return leaf.update(sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    call = (
        place(query, "data", None, "tensor"),
        place(keys, "data", "tensor"),
        place(values, "data", "tensor"),
        jax.tree.map(lambda leaf: place(leaf, "data"), visible),
        *(place(leaf, "data", "tensor") for leaf in new),
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(KERNEL).trace(*call).lower(lowering_platforms=("tpu",))
        text = lowered.compile().as_text()
    assert MOSAIC in text
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text)


@pytest.mark.tpu_aot
def test_the_vocabulary_head_compiles_for_tpu_without_its_logits(chips):
    device = SingleDeviceSharding(chips[0])
    batch, queries, vocab, width = 4, 256, 126464, 4096

    def struct(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def predict(weight, hidden, keys, temperature):
        wants = ("token", "log_prob", "entropy", "margin", "top:8")
        places = jax.random.wrap_key_data(keys)
        sampling = Sampling(temperature)
        return vocab_head.statistics(Head(weight), hidden, wants, sampling, places)

    call = (
        struct((vocab, width), jnp.bfloat16),
        struct((batch, queries, width), jnp.bfloat16),
        struct((batch, queries, 2), jnp.uint32),
        struct((), jnp.float32),
    )
    lowered = jax.jit(predict).trace(*call).lower(lowering_platforms=("tpu",))
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.05 * 4 * batch * queries * vocab
