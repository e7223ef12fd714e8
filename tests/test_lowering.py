"""One trace, every platform: what attention becomes where the program is lowered for.

Programs for TPU are compiled here without one when libtpu is installed (the tpu-aot
extra); nothing says how fast they are.
"""

import contextlib
import functools
import re
import sys

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

from pdecode import cache as caches
from pdecode.contracts import Head, Sampling, Visibility
from pdecode.kernels.attention import api as kernel
from pdecode.kernels.head import api as vocab_head
from pdecode.models import layers, transformer

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


def on_a_gpu():
    """Where a program for CUDA can be lowered: jax 0.11 wants to know the GPU."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
    mesh = AbstractMesh((1,), ("x",), abstract_device=gpu)
    return jax.sharding.use_abstract_mesh(mesh)


def traced(name, **options):
    *sizes, soft_cap = CALLS[name]
    function = functools.partial(KERNEL, soft_cap=soft_cap, **options)
    return jax.jit(function).trace(*shapes(*sizes))


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_follows_the_platform_of_the_program(name):
    is_half = jnp.bfloat16 in CALLS[name]
    for platform in ("tpu", "cuda", "cpu"):
        with on_a_gpu() if platform == "cuda" else contextlib.nullcontext():
            trace = traced(name)
            text = trace.lower(lowering_platforms=(platform,)).as_text()
        assert (MOSAIC in text) == (platform == "tpu"), platform
        assert ("triton" in text) == (platform == "cuda" and is_half), platform


@pytest.mark.parametrize(
    "slots, queries, dtype, platform, has_kernel",
    [
        (512, 4, jnp.bfloat16, "cuda", True),
        (511, 4, jnp.bfloat16, "cuda", False),
        (511, 1056, jnp.bfloat16, "cuda", True),  # 132 blocks of rows
        (511, 1024, jnp.bfloat16, "cuda", False),
        (511, 1056, jnp.float32, "cuda", False),
        (512, 4, jnp.float32, "cuda", False),
        (512, 4, jnp.bfloat16, "cpu", False),
    ],
)
def test_cuda_reads_bfloat16_by_its_kernel_where_that_is_the_faster(
    slots, queries, dtype, platform, has_kernel
):
    call = shapes(2, queries, 4, 2, slots, 64, dtype, True, True)
    with on_a_gpu():
        trace = jax.jit(KERNEL).trace(*call)
        text = trace.lower(lowering_platforms=(platform,)).as_text()
        assert ("triton" in text) == has_kernel
        plain = jax.jit(functools.partial(KERNEL, implementation="xla")).trace(*call)
        assert "triton" not in plain.lower(lowering_platforms=(platform,)).as_text()


def test_a_jax_without_triton_gives_cuda_the_plain_path(monkeypatch):
    monkeypatch.setitem(sys.modules, "pdecode.kernels.attention.gpu", None)
    monkeypatch.delattr("pdecode.kernels.attention.gpu", raising=False)
    call = shapes(2, 3, 4, 2, 512, 64, jnp.bfloat16, True, True)
    text = jax.jit(KERNEL).trace(*call).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in text


def loops(function, *arguments):
    """Whether a program for CUDA, TPU and CPU has a loop."""
    trace = jax.jit(function).trace(*arguments)
    return [
        "stablehlo.while" in trace.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cuda", "tpu", "cpu")
    ]


def test_a_call_made_at_times_is_a_branch_for_tpu_and_a_loop_elsewhere():
    def write(cache):
        return cache.sum(), cache.at[0].set(1.0)

    def keep(cache):
        return cache.sum(), cache

    assert loops(
        lambda wanted, cache: caches.when(wanted, write, keep, cache),
        jax.ShapeDtypeStruct((), bool),
        jax.ShapeDtypeStruct((4,), jnp.float32),
    ) == [True, False, True]


def test_cuda_reads_the_vocabulary_at_one_go():
    head = jax.ShapeDtypeStruct((1 << 17, 16), jnp.bfloat16)
    hidden = jax.ShapeDtypeStruct((1, 32, 16), jnp.bfloat16)

    def decide(weight, hidden):
        wants = ("token", "log_prob", "margin")
        return vocab_head.statistics(Head(weight), hidden, wants, Sampling())

    assert loops(decide, head, hidden) == [False, True, True]
    # 2048 rows leave a tile 32768 ids.
    many = jax.ShapeDtypeStruct((8, 256, 16), jnp.bfloat16)
    assert loops(decide, head, many) == [True, True, True]


def test_16_bit_heads_are_turned_by_the_same_numbers_everywhere():
    rope = transformer.Rope()
    heads = jax.random.normal(jax.random.key(0), (2, 5, 3, 16), jnp.bfloat16)
    place = jnp.arange(10, dtype=jnp.int32).reshape(2, 5) * 37
    angles = layers.rotary(rope, 16, place)
    want = jax.jit(layers._turned_halves)(heads, *angles)
    got = jax.jit(layers._turned_pairs)(heads, *angles)
    assert jnp.array_equal(got, want) and not jnp.array_equal(got, heads)


def test_a_choice_by_name_is_kept():
    plain = traced("a tree", implementation="xla").lower(lowering_platforms=("tpu",))
    assert MOSAIC not in plain.as_text()
    forced = traced("a tree", implementation="pallas_tpu")
    assert MOSAIC in forced.lower(lowering_platforms=("tpu",)).as_text()
    with pytest.raises(Exception, match="interpret mode is supported on CPU"):
        forced.lower(lowering_platforms=("cpu",))


@pytest.mark.parametrize("name", CALLS)
def test_the_gpu_kernel_lowers_for_cuda(name):
    with on_a_gpu():
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
