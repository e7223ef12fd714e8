"""What the memory and the matrix units of this machine reach when they do nothing else.

Each measurement is one compiled loop, the same program on every platform: starting it
is no part of its time. The memory's rate is the better of two, rewriting a large array
in place and reading it: decoding mostly reads, which on some memories is faster.
"""

import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pdecode.hardware import roofline

NUM_RUNS = 5  # of each loop after its warm-up; their median counts
TURNS = 10  # of a loop
MOVED = {"cpu": 256 << 20}  # bytes of the array, by platform
ON_ACCELERATOR = 4 << 30
SIDE = {"cpu": 1024}  # of the square matrices, by platform
SIDE_ON_ACCELERATOR = 8192

CACHED = {"cpu": 8 << 20}  # bytes below which a cache may be what is read
CACHED_ON_ACCELERATOR = 256 << 20


class Peaks(NamedTuple):
    """Rates that nothing honest can exceed on this machine."""

    bandwidth: float  # bytes a second, the better of the next two
    flops: float  # of one large matmul in the dtype of the run
    rewritten: float  # bytes a second, read and written
    read: float  # bytes a second


class Floor(NamedTuple):
    """The shortest time that a piece of work can take, and what bounds it."""

    seconds: float
    bound: str  # memory | matmul


def peaks(dtype: str, *, num_bytes: int | None = None, side: int | None = None):
    """Measures this machine: `Peaks` for matmuls in `dtype`.

    `num_bytes` of the array (None: 4 GiB, or an eighth of what the device has left if
    that is less; 256 MiB on CPU) should be far more than any cache holds; `side` of the
    matrices (None: 8192, 1024 on CPU). ValueError for less than a kilobyte or side 1.
    """
    platform = jax.default_backend()
    if num_bytes is None:
        num_bytes = MOVED.get(platform) or min(ON_ACCELERATOR, _left() // 8)
    side = side or SIDE.get(platform, SIDE_ON_ACCELERATOR)
    if num_bytes < 1024 or side < 2:
        raise ValueError(f"{num_bytes=} must be at least 1024, and {side=} at least 2")
    block = jnp.ones((num_bytes // 4,), jnp.float32)
    turns = jnp.int32(TURNS)
    times = []
    for _ in range(1 + NUM_RUNS):
        began = time.perf_counter()
        # Given away: what is fresh would be paid for page by page.
        block = jax.block_until_ready(_rewritten(block, turns))
        times.append(time.perf_counter() - began)
    moved = TURNS * block.nbytes
    rewritten = 2 * moved / statistics.median(times[1:])
    read = moved / roofline.median_seconds(_read, (block, turns), NUM_RUNS)
    del block
    # The product of ones and this is ones again, which no loop makes overflow; and
    # equal numbers cost least power, so no other matmul is faster for its data.
    square = jnp.full((side, side), 1 / side, dtype)
    work = TURNS * 2 * side**3
    arguments = jnp.ones_like(square), square, turns
    flops = work / roofline.median_seconds(_multiplied, arguments, NUM_RUNS)
    return Peaks(max(rewritten, read), flops, rewritten, read)


def floor(num_bytes: float, num_flops: float, found: Peaks) -> Floor:
    """What moving `num_bytes` once and `num_flops` take at the peaks, the longer."""
    memory, matmul = num_bytes / found.bandwidth, num_flops / found.flops
    return Floor(max(memory, matmul), "memory" if memory >= matmul else "matmul")


def share(rate: float, peak: float, what: str, unit: str = "GB/s") -> float:
    """`rate` over `peak`; ValueError where it is more, for then one of them is wrong.

    `what` names the measurement; rates are printed in units of 1e9.
    """
    if rate > peak:
        raise ValueError(
            f"{what}: {rate / 1e9:,.0f} {unit} is over the measured peak of "
            f"{peak / 1e9:,.0f} {unit}, so one of the two is wrong: run it again with "
            "nothing beside it, or, if its weights fit in a cache, take a larger shape"
        )
    return rate / peak


def of_memory(num_bytes: float, seconds: float, found: Peaks) -> float | None:
    """Share of the memory's rate; None of so few bytes that a cache may hold them."""
    least = CACHED.get(jax.default_backend(), CACHED_ON_ACCELERATOR)
    return None if num_bytes < least else num_bytes / seconds / found.bandwidth


def _left() -> int:
    """Bytes of memory that the first device has for arrays; 16 GiB if it says none."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 16 << 30) - stats.get("bytes_in_use", 0)


# The number of turns is an argument, so that no compiler unrolls a loop and merges two
# passes over the array into one.


@functools.partial(jax.jit, donate_argnums=0)
def _rewritten(block, turns):
    return jax.lax.fori_loop(0, turns, lambda _, x: x * 1.0001 + 1e-9, block)


@jax.jit
def _read(block, turns):
    # What a turn compares with is of the turn before: nothing of it can be done once.
    def turn(_, least):
        return 1e-30 * jnp.sum(jnp.maximum(block, least))

    return jax.lax.fori_loop(0, turns, turn, jnp.zeros((), block.dtype))


@jax.jit
def _multiplied(x, square, turns):
    return jax.lax.fori_loop(0, turns, lambda _, x: x @ square, x)
