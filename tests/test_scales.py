"""Tokens from coarse to fine, and the decode that draws a scale a call."""

import jax
import numpy as np
import pytest
from test_visual import MASKED, PIXELS, any_order_law, drawn, gap

from pdecode import methods
from pdecode.data import digits, scales

SIZES = (1, 4, 16, 64)


def pyramid(number=60):
    """(features [B, 64, 1] of real digits along the z-curve, a codebook of 16)."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pixels, _ = digits.shipped()
    flat = pixels[:number].reshape(number, 64)[:, scales.z_order(8)]
    features = flat[:, :, None] / 16.0
    return features, scales.fit(features, SIZES, 16)


def test_runs_of_the_z_curve_are_squares():
    assert scales.z_order(2).tolist() == [0, 1, 2, 3]
    assert scales.z_order(4).tolist() == [
        *[0, 1, 4, 5, 2, 3, 6, 7], *[8, 9, 12, 13, 10, 11, 14, 15]
    ]  # fmt: skip
    for run in scales.z_order(8).reshape(4, 16):
        rows, columns = np.divmod(run, 8)
        assert np.ptp(rows) == np.ptp(columns) == 3
    with pytest.raises(ValueError, match="power of two"):
        scales.z_order(6)


def test_no_scale_leaves_more_over():
    features, codebook = pyramid()
    codes = scales.encode(codebook, features, SIZES)
    assert codes.shape == (60, 85) and (codebook[0] == 0).all()
    sizes = [(features**2).sum((1, 2))]
    for k in range(1, 5):
        said = scales.decode(codebook, codes, SIZES[:k], 64)
        sizes.append(((features - said) ** 2).sum((1, 2)))
        assert (sizes[-1] <= sizes[-2] + 1e-9).all()
    # What is left at the end is small, and every scale helped.
    means = [size.mean() for size in sizes]
    assert means[-1] < 0.02 * means[0] and all(np.diff(means) < 0)
    # A run of equal values is said by its mean: the first scale is the nearest code.
    mean = features.mean((1, 2))
    nearest = np.abs(mean[:, None] - codebook[None, :, 0]).argmin(1)
    np.testing.assert_array_equal(codes[:, 0], nearest)


def test_without_a_zero_code_a_scale_may_leave_more():
    """Negative control: of an empty picture the nearest code is left over."""
    codebook = np.array([[0.4], [0.9]])
    codes = scales.encode(codebook, np.zeros((1, 64, 1)), SIZES[:1])
    assert (scales.decode(codebook, codes, SIZES[:1], 64) == 0.4).all()


def test_what_scales_must_be():
    features = np.zeros((2, 6, 1))
    with pytest.raises(ValueError, match=r"scales=\(1, 4\) must divide 6"):
        scales.fit(features, (1, 4), 4)
    with pytest.raises(ValueError, match="two or more"):
        scales.fit(features, (1, 6), 1)
    with pytest.raises(ValueError, match="have 5 tokens, but max_new_tokens=6"):
        methods.next_scale(MASKED, max_new_tokens=6, scales=(1, 4))


@pytest.mark.parametrize("sizes", [(1, 2, 3), (1,) * PIXELS])
def test_a_scale_is_drawn_from_those_before_it(sizes):
    """Independently in a scale; one by one it is the model's own law."""
    rank = np.repeat(np.arange(len(sizes)), sizes)
    made = methods.next_scale(MASKED, max_new_tokens=PIXELS, scales=sizes)
    assert made.guarantee == ("exact" if len(sizes) == PIXELS else "lossy")
    out = jax.tree.map(np.asarray, drawn(made))
    assert gap(out, any_order_law(rank)) < 1e-5
    if len(sizes) < PIXELS:  # the control: scales are not the joint
        assert gap(out, any_order_law(np.arange(PIXELS))) > 0.1
