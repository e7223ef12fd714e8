"""Attention backends against the oracle, and the oracle against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode.contracts import Visibility
from pdecode.kernels.attention import api as kernel
from pdecode.kernels.attention import reference


def brute_force(query, keys, values, visible, new_k, new_v, *, scale, soft_cap=None):
    """One query, one head, one key at a time, in float64."""
    b, q, h, _ = query.shape
    groups = h // keys.shape[1]
    out = np.zeros(query.shape)
    for row, lane, head in np.ndindex(b, q, h):
        pairs = []
        for slot in range(keys.shape[2]):
            inside = visible.start[row, lane] <= slot < visible.stop[row, lane]
            if inside and (visible.written is None or visible.written[row, slot]):
                place = (row, head // groups, slot)
                pairs.append((keys[place], values[place]))
        if visible.among is not None:
            for other in range(q):
                if visible.among[row, lane, other]:
                    place = (row, head // groups, other)
                    pairs.append((new_k[place], new_v[place]))
        if not pairs:
            continue
        scores = np.array([scale * query[row, lane, head] @ key for key, _ in pairs])
        if soft_cap is not None:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[row, lane, head] = sum(
            w * v for w, (_, v) in zip(weights, pairs, strict=True)
        )
    return out


def case(seed, *, b=3, q=5, h=4, hkv=2, s=13, d=8, written=True, among=True):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    start = rng.integers(0, s, (b, q))
    stop = start + rng.integers(-2, s, (b, q))  # some empty, some past the end
    visible = Visibility(
        start.astype(np.int32),
        stop.astype(np.int32),
        rng.random((b, s)) < 0.6 if written else None,
        rng.random((b, q, q)) < 0.4 if among else None,
    )
    arrays = (normal(b, q, h, d), normal(b, hkv, s, d), normal(b, hkv, s, d))
    return arrays, visible, (normal(b, hkv, q, d), normal(b, hkv, q, d))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("among", [False, True])
def test_ragged_visibility(implementation, soft_cap, written, among):
    for seed, heads in enumerate([(4, 2), (4, 4), (3, 1)]):
        arrays, visible, new = case(
            seed, h=heads[0], hkv=heads[1], written=written, among=among
        )
        want = brute_force(*arrays, visible, *new, scale=0.4, soft_cap=soft_cap)
        got = kernel.attention(
            *map(jnp.asarray, arrays),
            jax.tree.map(jnp.asarray, visible),
            *map(jnp.asarray, new),
            scale=0.4,
            soft_cap=soft_cap,
            implementation=implementation,
        )
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_query_that_sees_nothing_is_exactly_zero(implementation):
    arrays, visible, new = case(0)
    nothing = Visibility(
        np.zeros_like(visible.start),
        np.full_like(visible.stop, 13),
        np.zeros((3, 13), bool),
        np.zeros((3, 5, 5), bool),
    )

    def loss(query):
        return kernel.attention(
            query, *arrays[1:], nothing, *new, scale=1.0, implementation=implementation
        ).sum()

    value, grad = jax.value_and_grad(loss)(jnp.asarray(arrays[0]))
    assert value == 0 and not np.any(grad)


def test_bfloat16_keeps_its_dtype_and_stays_near():
    arrays, visible, new = case(1)
    arrays, new = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (arrays, new))
    want = reference.attention(*arrays, visible, *new, scale=0.35)
    got = kernel.attention(*arrays, visible, *new, scale=0.35)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        got.astype(np.float32), want.astype(np.float32), atol=0.03
    )


@pytest.mark.parametrize("causal", [True, False])
def test_narrowed_is_a_window_around_each_position(causal):
    positions = np.array([[2, 7, 5], [0, 1, 11]], np.int32)
    visible = Visibility(
        np.zeros((2, 3), np.int32),
        np.full((2, 3), 12, np.int32),
        None,
        np.ones((2, 3, 3), bool),
    )
    cut = kernel.narrowed(visible, positions, 3, causal=causal)
    gap = np.arange(12)[None, None] - positions[:, :, None]
    want = (gap > -3) & (causal | (gap < 3))
    np.testing.assert_array_equal(reference.visible_mask(cut, 12), want)
    gap = positions[:, None, :] - positions[:, :, None]
    np.testing.assert_array_equal(cut.among, (gap > -3) & (causal | (gap < 3)))


def test_errors():
    arrays, visible, new = case(0)
    with pytest.raises(ValueError, match=r"unknown implementation 'x'; known: ref"):
        kernel.attention(*arrays, visible, *new, scale=1.0, implementation="x")
    with pytest.raises(ValueError, match="needs key_new"):
        kernel.attention(*arrays, visible, scale=1.0)
    with pytest.raises(ValueError, match="do not group"):
        kernel.attention(arrays[0][:, :, :3], *arrays[1:], visible, *new, scale=1.0)
