"""The Pallas kernels in interpret mode against the oracle, over drawn problems."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from pdecode import sharding
from pdecode.contracts import Visibility
from pdecode.kernels.attention import api as kernel
from pdecode.kernels.attention import gpu, reference, tpu

TOLERANCE = {np.float32: 2e-6, jnp.bfloat16: 0.02}


# Each of these compiles once; what the arrays hold is drawn again and again.
# batch, queries, heads, key heads, slots, head width, block of slots, dtype, written,
# among, soft cap
SIZES = [
    (1, 1, 3, 1, 37, 16, 16, np.float32, False, False, None),  # decoding; ragged end
    (3, 5, 6, 2, 37, 32, 8, np.float32, True, True, 2.0),
    (2, 17, 4, 4, 16, 20, 16, np.float32, False, True, None),  # one block of slots
    (2, 16, 4, 2, 40, 16, 8, jnp.bfloat16, True, True, None),
    (2, 7, 2, 1, 5, 16, 8, jnp.bfloat16, True, False, None),  # fewer slots than a block
]
INTERVALS = ("any", "ragged prefix", "empty", "one slot")
AMONG = ("any", "tree", "nothing")


def build(sizes, intervals, among, seed):
    """Arguments of `kernels.attention.attention`, in order."""
    b, q, heads, hkv, s, d, _, dtype, has_written, has_among, _ = sizes
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    start = rng.integers(-1, s, (b, q))
    stop = start + rng.integers(-3, s + 3, (b, q))  # some empty, some past the end
    if intervals == "ragged prefix":
        start, stop = 0 * start, np.broadcast_to(rng.integers(0, s + 1, (b, 1)), (b, q))
    elif intervals == "empty":
        stop = start
    elif intervals == "one slot":
        stop = start + 1
    seen = np.zeros((b, q, q), bool)
    if among == "any":
        seen = rng.random((b, q, q)) < 0.4
    elif among == "tree":  # each lane sees its ancestors and itself
        seen |= np.eye(q, dtype=bool)
        for row, lane in np.ndindex(b, q - 1):
            seen[row, lane + 1] |= seen[row, rng.integers(0, lane + 1)]
    visible = Visibility(
        start.astype(np.int32),
        stop.astype(np.int32),
        rng.random((b, s)) < 0.6 if has_written else None,
        seen if has_among else None,
    )
    cache = (normal(b, hkv, s, d), normal(b, hkv, s, d))
    new = (normal(b, hkv, q, d), normal(b, hkv, q, d))
    return (normal(b, q, heads, d), *cache, visible, *new)


@functools.cache
def both(sizes, backend=tpu):
    """The oracle and the kernel, compiled for one set of sizes."""
    options = {"scale": 0.4, "soft_cap": sizes[-1]}
    oracle = functools.partial(reference.attention, **options)
    blocks = {"slots_per_block": sizes[6], "interpret": True}
    call = functools.partial(backend.attention, **options, **blocks)
    return jax.jit(oracle), jax.jit(call)


@pytest.mark.parametrize("backend", [tpu, gpu], ids=["tpu", "gpu"])
def test_kernels_equal_the_oracle(backend):
    is_served = {20: backend is tpu}  # Triton takes powers of two only

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(
        st.sampled_from([sizes for sizes in SIZES if is_served.get(sizes[5], True)]),
        st.sampled_from(INTERVALS),
        st.sampled_from(AMONG),
        st.integers(0, 2**16),
    )
    def check(sizes, intervals, among, seed):
        arrays = build(sizes, intervals, among, seed)
        oracle, kernel = both(sizes, backend)
        want, got = oracle(*arrays), kernel(*arrays)
        assert got.dtype == want.dtype == sizes[7]
        got, want = got.astype(np.float32), want.astype(np.float32)
        np.testing.assert_allclose(got, want, atol=TOLERANCE[sizes[7]])

    check()


def test_blocks_outside_every_interval_are_not_read():
    """NaN where no query looks, beyond the last slot of a visible block, is not met."""
    sizes = (2, 3, 2, 1, 64, 8, 8, np.float32, False, False, None)
    query, keys, values, visible, *new = build(sizes, "any", "nothing", 0)
    start = np.array([[17, 20, 30], [40, 40, 44]], np.int32)
    visible = visible._replace(start=start, stop=start + 2)
    used = np.zeros((2, 1, 64, 1), bool)
    used[0, :, 16:32], used[1, :, 40:48] = True, True
    keys, values = np.where(used, keys, np.nan), np.where(used, values, np.nan)
    _, kernel = both(sizes)
    got = kernel(query, keys, values, visible, *new)
    want = reference.attention(
        query,
        np.nan_to_num(keys),
        np.nan_to_num(values),
        visible,
        *new,
        scale=0.4,
    )
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_the_gradient_is_that_of_the_oracle():
    sizes = (3, 5, 6, 2, 37, 20, 8, np.float32, True, True, 2.0)
    arrays = build(sizes, "any", "any", 3)
    weights = np.random.default_rng(0).standard_normal(arrays[0].shape)
    weights = weights.astype(np.float32)
    places = (0, 1, 2, 4, 5)
    want, got = (
        jax.jit(
            jax.grad(lambda *a, call=call: (weights * call(*a)).sum(), argnums=places)
        )(*arrays)
        for call in both(sizes)
    )
    for one, other in zip(got, want, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_rows_and_heads_are_split_over_the_mesh_in_context(monkeypatch):
    mesh = sharding.make_mesh(data=2, tensor=4)
    sizes = (2, 3, 8, 4, 16, 8, 8, np.float32, True, True, None)
    arrays = build(sizes, "any", "tree", 4)
    seen = []

    def interpreted(query, *others, **options):
        seen.append(query.shape)
        return whole(query, *others, **options, interpret=True)

    whole = tpu.attention
    monkeypatch.setattr(tpu, "attention", interpreted)

    def place(leaf, *spec):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    placed = (
        place(arrays[0], "data", None, "tensor"),
        *(place(leaf, "data", "tensor") for leaf in arrays[1:3]),
        jax.tree.map(lambda leaf: place(leaf, "data"), arrays[3]),
        *(place(leaf, "data", "tensor") for leaf in arrays[4:]),
    )
    call = functools.partial(kernel.attention, scale=0.4, implementation="pallas_tpu")
    with jax.set_mesh(mesh):
        got = jax.jit(call)(*placed)
    assert seen == [(1, 3, 2, 8)]  # one row and two of eight heads a device
    np.testing.assert_allclose(got, reference.attention(*arrays, scale=0.4), atol=2e-6)


def test_a_cache_split_over_its_slots_is_left_to_the_compiler():
    mesh = sharding.make_mesh(sequence=4)
    sizes = (1, 2, 2, 1, 1024, 16, 8, np.float32, True, False, None)
    arrays = build(sizes, "ragged prefix", "nothing", 5)
    with jax.set_mesh(mesh):
        trace = jax.jit(functools.partial(kernel.attention, scale=0.4)).trace(*arrays)
        text = trace.lower(lowering_platforms=("tpu",)).as_text()
        with pytest.raises(NotImplementedError, match="'sequence', which only"):
            kernel.attention(*arrays, scale=0.4, implementation="pallas_tpu")
    assert "tpu_custom_call" not in text
