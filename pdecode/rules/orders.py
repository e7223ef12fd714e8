"""Orders of a grid: rank int32 [H * W] by raster index; equal ranks go together."""

import numpy as np

__all__ = [
    "NAMES",
    "before_in_frame",
    "cut",
    "diagonal",
    "group_sizes",
    "halton",
    "hierarchical",
    "latest_above",
    "local",
    "masked_sizes",
    "of",
    "raster",
    "spiral",
    "wavefront",
]

# Orders without a choice of their own, by name.
NAMES = ("raster", "random", "halton", "spiral", "diagonal", "hierarchical")


def of(name: str, total: int, row_length: int | None, seed: int = 0) -> np.ndarray:
    """The order `name` of the first `total` positions of a grid, row by row.

    `row_length` None is one row. ValueError for an unknown name.
    """
    width = total if row_length is None else row_length
    height = -(-total // width)
    if name not in NAMES:
        raise ValueError(f"unknown order {name!r}; known: {', '.join(NAMES)}")
    made = {
        "raster": raster,
        "random": lambda h, w: np.argsort(
            np.random.default_rng(seed).permutation(h * w)
        ),
        "halton": halton,
        "spiral": spiral,
        "diagonal": diagonal,
        "hierarchical": hierarchical,
    }[name](height, width)
    # Ranks that only positions behind the end have are no turn.
    return np.unique(made[:total], return_inverse=True)[1].astype(np.int32)


def raster(height: int, width: int) -> np.ndarray:
    """Row by row, one position after another."""
    return np.arange(height * width, dtype=np.int32)


def halton(height: int, width: int) -> np.ndarray:
    """Cells as the two-dimensional Halton sequence (bases 2 and 3) first meets them.

    Neighbours in the order lie far apart (Besnier et al., 2025).
    """
    total = height * width
    rank = np.full(total, -1, np.int32)
    number, found = 1, 0
    while found < total:
        row = int(_radical_inverse(number, 2) * height)
        column = int(_radical_inverse(number, 3) * width)
        cell = row * width + column
        if rank[cell] < 0:
            rank[cell], found = found, found + 1
        number += 1
    return rank


def _radical_inverse(number: int, base: int) -> float:
    """The digits of `number` mirrored behind the point."""
    value, share = 0.0, 1.0
    while number:
        share /= base
        number, digit = divmod(number, base)
        value += share * digit
    return value


def spiral(height: int, width: int) -> np.ndarray:
    """From the middle outwards, turn after turn."""
    rest = raster(height, width).reshape(height, width)
    turns = []
    while rest.size:
        turns.append(rest[0])
        rest = np.rot90(rest[1:])
    inwards = np.concatenate(turns)
    rank = np.empty(height * width, np.int32)
    rank[inwards[::-1]] = np.arange(height * width)
    return rank


def diagonal(height: int, width: int) -> np.ndarray:
    """Antidiagonals, each as one group: 2 n - 1 of them in a square of side n."""
    rows, columns = np.indices((height, width))
    return (rows + columns).reshape(-1).astype(np.int32)


def hierarchical(height: int, width: int) -> np.ndarray:
    """Coarse to fine: one cell, then those of a grid twice as fine, and so on."""
    rows, columns = np.indices((height, width))
    levels = max(height - 1, width - 1, 0).bit_length()
    rank = np.full((height, width), levels, np.int32)
    for level in reversed(range(levels)):
        step = 2 ** (levels - level)
        rank[(rows % step == 0) & (columns % step == 0)] = level
    return rank.reshape(-1)


def cut(rank: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`rank`, of which no two are equal, cut into groups of `sizes` in turn."""
    made = np.empty(len(rank), np.int32)
    made[np.argsort(rank, kind="stable")] = np.repeat(np.arange(len(sizes)), sizes)
    return made


def group_sizes(total: int, num_groups: int) -> np.ndarray:
    """int64 [K] cosine-growing group sizes, each at least 1, that sum to `total`.

    They follow N * (cos(pi/2 s/K) - cos(pi/2 (s+1)/K)), as in LPD. ValueError if there
    are more groups than positions.
    """
    if not 1 <= num_groups <= total:
        raise ValueError(f"{num_groups=} must lie in [1, {total}]")
    edge = np.cos(np.pi / 2 * np.arange(num_groups + 1) / num_groups)
    spare = total - num_groups
    # One each, and the rest in cosine shares with the rounding in the last group.
    taken = np.floor(spare * (1 - edge) + 1e-9).astype(np.int64)
    taken[-1] = spare
    return 1 + np.diff(taken)


def masked_sizes(total: int, num_groups: int, schedule: str) -> np.ndarray:
    """int64 [K] group sizes of ARPG: after group s, int(N * r) positions are left.

    r = arccos((s + 1) / K) * 2 / pi, or cos(pi / 2 (s + 1) / K); at least one position
    is decided in every group and at least one is left for the next.
    """
    if not 1 <= num_groups <= total:
        raise ValueError(f"{num_groups=} must lie in [1, {total}]")
    progress = np.arange(1, num_groups + 1) / num_groups
    left = {
        "arccos": np.arccos(progress) * 2 / np.pi,
        "cosine": np.cos(np.pi / 2 * progress),
    }[schedule]
    sizes, done = [], 0
    for group, share in enumerate(left[:-1]):
        # One for each group that comes: else a late one would find nothing to do.
        least = num_groups - 1 - group
        after = min(max(int(total * share), least), total - done - 1)
        sizes.append(total - done - after)
        done = total - after
    return np.array([*sizes, total - done], np.int64)


def local(
    height: int,
    width: int,
    sizes: np.ndarray,
    *,
    seed: int,
    repulsion: int = 2,
    total: int | None = None,
) -> np.ndarray:
    """LPD's order: near what is decided, far from what is decided beside it.

    Zhang et al., 2025, arXiv:2507.01957. A group takes, the closest to decided cells
    first, cells that have a decided neighbour and none of its own members in the box
    of `repulsion` cells around them; if these are too few, the cells farthest from its
    members. Ties are drawn from `seed`. The grid ends behind `total` cells.
    """
    draw = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    cells = np.stack([rows.reshape(-1), columns.reshape(-1)], -1)[:total]
    rank = np.full(len(cells), -1, np.int32)
    for group, size in enumerate(sizes):
        open_ = draw.permutation(np.flatnonzero(rank < 0))
        decided = cells[rank >= 0]
        near = _proximity(cells[open_], decided)
        members: list[int] = []
        for index in open_[np.argsort(-near, kind="stable")][: (near >= 1).sum()]:
            gap = np.abs(cells[members] - cells[index]).max(1) if members else [np.inf]
            if len(members) < size and np.min(gap) > repulsion:
                members.append(index)
        while len(members) < size:
            rest = np.setdiff1d(open_, members)
            rest = draw.permutation(rest)
            if members:
                apart = cells[rest][:, None] - cells[members][None]
                rest = rest[np.argsort(-np.square(apart).sum(-1).min(1), kind="stable")]
            members.append(rest[0])
        rank[members] = group
    return rank


def _proximity(cells: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """Sum of 1 / distance to the decided among the eight neighbours, float [N]."""
    apart = cells[:, None] - decided[None]
    is_near = np.abs(apart).max(-1, initial=0) == 1
    distance = np.sqrt(np.square(apart).sum(-1))
    return np.where(is_near, 1 / np.maximum(distance, 1), 0).sum(1)


def wavefront(
    total: int,
    row_length: int,
    window: int,
    *,
    frame_length: int | None = None,
    is_first_whole: bool = False,
) -> np.ndarray:
    """Rows that begin when the one above has `window` tokens, all going at once.

    With `frame_length` a frame of so many tokens begins when the last one is complete.
    `is_first_whole` completes each frame's first row alone. A window of a row's length,
    or more, is raster order.
    """
    place = np.arange(total)
    frame, inside = np.divmod(place, total if frame_length is None else frame_length)
    row, column = np.divmod(inside, row_length)
    gap = min(window, row_length)
    late = np.where(row > 0, row_length - gap, 0) if is_first_whole else 0
    rank = row * gap + column + late
    return (frame * (rank.max() + 1) + rank).astype(np.int32)


def latest_above(rank: np.ndarray, row_length: int) -> np.ndarray:
    """For each place the latest one of the row above that is drawn before it.

    -1, the prompt's last, in the first row. Of a wavefront it is the latest of all.
    """
    place = np.arange(len(rank))
    first = (place // row_length - 1) * row_length
    columns = np.arange(row_length)[None]
    above = np.clip(first[:, None] + columns, 0, len(rank) - 1)
    is_drawn = (rank[above] < rank[:, None]).sum(1)
    return np.where(first < 0, -1, first + is_drawn - 1).astype(np.int32)


def before_in_frame(rank: np.ndarray, frame_length: int) -> np.ndarray:
    """For each place what stands before it in the frame before; below 0 the prompt's.

    Of frames that overlap it may not be drawn yet: then the nearest one that is.
    """
    found = np.arange(len(rank)) - 1 - frame_length
    for place in range(len(rank)):
        while found[place] >= 0 and rank[found[place]] >= rank[place]:
            found[place] -= 1
    return found.astype(np.int32)
