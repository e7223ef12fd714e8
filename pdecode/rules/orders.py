"""Orders of a grid: rank int32 [H * W] by raster index; equal ranks go together."""

import numpy as np


def raster(height: int, width: int) -> np.ndarray:
    """Row by row, one position after another."""
    return np.arange(height * width, dtype=np.int32)


def shuffled(height: int, width: int, *, seed: int, num_groups: int) -> np.ndarray:
    """A random permutation cut into `num_groups` groups of sizes that grow.

    Sizes follow N * (cos(pi/2 s/K) - cos(pi/2 (s+1)/K)), at least 1, as in ARPG and
    LPD. ValueError if there are more groups than positions.
    """
    total = height * width
    sizes = group_sizes(total, num_groups)
    permutation = np.random.default_rng(seed).permutation(total)
    rank = np.empty(total, np.int32)
    rank[permutation] = np.repeat(np.arange(num_groups, dtype=np.int32), sizes)
    return rank


def group_sizes(total: int, num_groups: int) -> np.ndarray:
    """int64 [K] cosine-growing group sizes, each at least 1, that sum to `total`."""
    if not 1 <= num_groups <= total:
        raise ValueError(f"{num_groups=} must lie in [1, {total}]")
    edge = np.cos(np.pi / 2 * np.arange(num_groups + 1) / num_groups)
    spare = total - num_groups
    # One each, and the rest in cosine shares with the rounding in the last group.
    taken = np.floor(spare * (1 - edge) + 1e-9).astype(np.int64)
    taken[-1] = spare
    return 1 + np.diff(taken)
