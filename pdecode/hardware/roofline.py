"""What a call costs: measured here by its number of queries, and by a roofline there.

The roofline is this and no more: a call takes the longer of reading every weight and
every cached key and value once, and of two floating point operations a weight and
query. No launch overhead, no attention arithmetic, full use of the machine.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import names, prompts
from pdecode.contracts import Model, Params, Query, Sampling, SlotRun, Visibility
from pdecode.kernels.head import api as vocab_head

WIDTHS = (1, 2, 4, 8, 16, 32)


class Hardware(NamedTuple):
    """A machine, and the model whose decoding on it is predicted."""

    name: str
    flops: float  # a second
    bandwidth: float  # bytes a second
    num_params: float
    bytes_per_param: int
    cache_bytes: float  # keys and values of one token
    about: str


# Llama-3.2-3B in bfloat16: 28 layers of 8 key and value heads of 128.
_3B = {"num_params": 3.2e9, "bytes_per_param": 2, "cache_bytes": 2 * 28 * 8 * 128 * 2}


def h100(num_params: int, cache_bytes: float) -> Hardware:
    """One H100 SXM with a 3.2-billion-parameter model; the arguments are ignored."""
    del num_params, cache_bytes
    return Hardware(
        "h100", 989e12, 3.35e12, about="H100 SXM, 989 TFLOP/s, 3.35 TB/s", **_3B
    )


def v5e(num_params: int, cache_bytes: float) -> Hardware:
    """One TPU v5e with a 3.2-billion-parameter model; the arguments are ignored."""
    del num_params, cache_bytes
    return Hardware(
        "v5e", 197e12, 0.819e12, about="TPU v5e, 197 TFLOP/s, 0.82 TB/s", **_3B
    )


def cpu(num_params: int, cache_bytes: float) -> Hardware:
    """Two cores of a laptop with the model of this run in float32."""
    about = "two laptop cores, 100 GFLOP/s, 20 GB/s"
    return Hardware("cpu", 100e9, 20e9, num_params, 4, cache_bytes, about)


MACHINES = {"cpu": cpu, "h100": h100, "v5e": v5e}


def machine(name: str, num_params: int, cache_bytes: float) -> Hardware:
    """The named machine; ValueError listing the known ones."""
    if name not in MACHINES:
        known = (*MACHINES, *MEASURED)
        raise ValueError(f"unknown hardware {name!r}; {names.listed(name, known)}")
    return MACHINES[name](num_params, cache_bytes)


def roofline(
    on: Hardware, num_queries: float, *, batch: int, context: int, scale: float = 1.0
) -> float:
    """Seconds of a call of [batch, num_queries]; `scale` shrinks the model."""
    weights = scale * on.num_params
    moved = weights * on.bytes_per_param + scale * batch * context * on.cache_bytes
    return max(
        moved / on.bandwidth,
        2 * weights * batch * num_queries / on.flops,
    )


class Curve(NamedTuple):
    """Seconds of a call by its number of queries, rising."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, num_queries: float) -> float:
        """Seconds between measured widths by a straight line in both logarithms."""
        x = math.log(max(num_queries, 1e-9))
        return math.exp(np.interp(x, np.log(self.widths), np.log(self.seconds)))


class Measured(NamedTuple):
    """Cost of a call over that of a call of one query, as it was measured there."""

    about: str
    curve: Curve


# Of a byte model of 1.3 million parameters: launches, not weights, are the cost.
MEASURED = {
    "h200": Measured(
        "one NVIDIA H200, measured with a model of 1.3 million parameters; a drafter's "
        "call is taken to cost what the target's does",
        Curve((1, 8, 16, 32, 143), (1.0, 1.0, 1.16, 1.61, 1.61)),
    )
}


class Call(NamedTuple):
    """A compiled program of `count` calls, see `repeated_call`."""

    program: Callable
    arguments: tuple
    count: int


def compiled_call(
    model: Model, params: Params, width: int, *, batch: int, context: int
) -> Call:
    """Calls of [batch, width] queries over a cache of `context` tokens."""
    count = max(4, min(32, 128 // width))
    return Call(*repeated_call(model, params, batch, context, width, count), count)


def measure(widths: Sequence[int], calls: Sequence[Call], repeats: int = 7) -> Curve:
    """Times apply and head of each call, one at a time."""
    seconds = [
        median_seconds(call.program, call.arguments, repeats) / call.count
        for call in calls
    ]
    # A wider call is never cheaper; what says otherwise is noise.
    rising = np.maximum.accumulate(seconds)
    return Curve(tuple(widths), tuple(float(x) for x in rising))


def repeated_call(
    model: Model,
    params: Params,
    batch: int,
    context: int,
    width: int,
    count: int,
    *,
    num_slots: int | None = None,
    is_canvas: bool = False,
):
    """A compiled program of `count` calls of apply and head, and its arguments.

    Each call's tokens depend on the one before. Prefix calls move on as a decode does:
    call i has its queries behind `context + i` cached tokens, so that what depends on
    positions is worked out in every call. A canvas call has width <= context, and
    rewrites its first `width` slots seeing all. The cache has `num_slots` (None: as few
    as possible).
    """
    if num_slots is None:
        num_slots = context + 1 + (0 if is_canvas else count + width)
    blank = prompts.from_rows([[0]] * batch, max_new_tokens=1)
    cache = model.init_cache(blank, num_slots)
    tokens = jnp.zeros((batch, width), jnp.int32)
    program = _repeated.lower(
        params, tokens, cache, model=model, context=context, count=count,
        is_canvas=is_canvas,
    ).compile()  # fmt: skip
    return program, (params, tokens, cache)


def median_seconds(program, arguments: tuple, repeats: int) -> float:
    """Median wall time of a program after one warm-up."""
    jax.block_until_ready(program(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@functools.partial(jax.jit, static_argnames=("model", "context", "count", "is_canvas"))
def _repeated(params, tokens, cache, *, model, context, count, is_canvas):
    batch, width = tokens.shape
    lane = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    head = model.head(params)

    def call(i, carry):
        tokens, log_prob, cache = carry
        place = lane if is_canvas else context + i + lane
        stop = jnp.full_like(place, context) if is_canvas else place + 1
        visible = Visibility(start=jnp.zeros_like(place), stop=stop)
        query = Query(tokens, place, SlotRun(place[:, 0]), visible)
        output, cache = model.apply(params, query, cache)
        found = vocab_head.statistics(
            head, output.hidden, ("token", "log_prob"), Sampling()
        )
        return found.token, log_prob + found.log_prob, cache

    # What is not carried, or does not leave the loop, would not be worked out.
    carry = (tokens, jnp.zeros(tokens.shape, jnp.float32), cache)
    tokens, log_prob, cache = jax.lax.fori_loop(0, count, call, carry)
    return tokens, log_prob, jax.tree.map(lambda leaf: leaf[:, :, -1], cache)
