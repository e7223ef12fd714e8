"""Slices of one flow at growing resolutions, and how each begins where one ended.

Pyramidal flow matching (Jin et al., 2024, arXiv:2410.05954), as E-CAR's stages have it
(Yuan et al., 2024, arXiv:2412.14170). At resolution k an image is the means D_k of its
squares of cells, and a stage carries s D_(k-1) + (1 - s) n, grown, to e D_k + (1 - e) n
with n from N(0, I): its slice [s, e] of the way from noise to image. What a stage ends
with, x = e D + (1 - e) n, grown to squares of four equal cells and scaled by s / e, has
the next one's mean and the covariance 4 (s / e)^2 (1 - e)^2 J / 4 in each square, J all
ones. `lift` adds noise of covariance (1 - s)^2 I less that. It can, and no direction of
it is without noise, as long as s < e / (2 - e). The paper takes the limit, where a
square's mean has none: then a stage that is told how the one before it ended could not
vary what it ended with.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

__all__ = ["Slices", "check", "ends", "grown", "lift", "shrunk"]

Slices = Sequence[tuple[float, float]]  # where each begins and ends, coarse to fine


def check(slices: Slices) -> None:
    """ValueError for slices that are no way from noise to an image."""
    if not slices or slices[0][0] != 0 or slices[-1][1] != 1:
        raise ValueError(f"slices={slices} must begin at 0 and end at 1")
    for number, (begin, end) in enumerate(slices):
        if not 0 <= begin < end <= 1:
            raise ValueError(f"slices[{number}]={(begin, end)} must rise within [0, 1]")
        if number and begin >= (limit := _limit(slices[number - 1][1])):
            raise ValueError(
                f"slices[{number}] begins at {begin}, but behind an end at "
                f"{slices[number - 1][1]} a slice must begin below {limit:.4f}: there "
                "would be no noise left in the mean of a square"
            )


def shrunk(x: Array) -> Array:
    """Means of squares of four cells: [..., H, W] -> [..., H / 2, W / 2]."""
    *most, height, width = x.shape
    return x.reshape(*most, height // 2, 2, width // 2, 2).mean((-3, -1))


def grown(x: Array) -> Array:
    """Each cell as a square of four: [..., H, W] -> [..., 2 H, 2 W]."""
    return jnp.repeat(jnp.repeat(x, 2, -1), 2, -2)


def lift(x: Array, end: float, begin: float, noise: Array) -> Array:
    """Where a slice begins at `begin`, [..., 2 H, 2 W], of what ended at `end`.

    x [..., H, W]; noise [..., 2 H, 2 W] from N(0, I).
    """
    scale = begin / end
    left = (1 - begin) ** 2 - (2 * scale * (1 - end)) ** 2
    mean = grown(shrunk(noise))
    return scale * grown(x) + (1 - begin) * (noise - mean) + left**0.5 * mean


def ends(
    image: Array, slices: Slices, noises: Sequence[Array]
) -> list[tuple[Array, Array]]:
    """Both ends of every slice for an image [..., H, W], the coarsest first.

    `noises` from N(0, I), one of each slice's resolution: the first is where the flow
    begins, the others are those of `lift`. So a slice begins with what a decoder makes
    of the end of the one before, and ends with the same noise in the image.
    """
    means = [image]
    for _ in slices[1:]:
        means.insert(0, shrunk(means[0]))
    found, last = [], None
    for number, (begin, end) in enumerate(slices):
        first = noise = noises[number]
        if last is not None:
            first = lift(last, slices[number - 1][1], begin, noises[number])
            noise = (first - begin * grown(means[number - 1])) / (1 - begin)
        last = end * means[number] + (1 - end) * noise
        found.append((first, last))
    return found


def _limit(end: float) -> float:
    return end / (2 - end)
