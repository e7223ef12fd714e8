"""A method compiled once for models, shapes and a mesh, and kept.

`pdecode.decode.run` is one program. Here its `start` (which holds the prefill) and its
`loop` are two, so that compile, prefill and decode are told apart, and the loop also
notes at which step each position was committed.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdecode import decode, sharding
from pdecode import knobs as knob_rules
from pdecode.contracts import Decoder, Generation, Model, Params, Prompt
from pdecode.decode import Stats
from pdecode.sharding import processes

MAX_KEPT = 64  # programs kept in memory, so that a second call compiles nothing


class Programs(NamedTuple):
    """A method, compiled for models, sizes and the shapes of one batch."""

    start: Callable  # (params, prompt, key, knobs) -> decode.Carry
    # (params, prompt, carry, knobs) -> (generation, stats, commit steps)
    loop: Callable
    knobs: dict[str, Array]
    compile_s: float  # tracing, lowering and compiling; 0 if kept from before
    num_cached: int  # of the two, read from the persistent compilation cache


class Decoded(NamedTuple):
    """One decode of one batch, as numpy arrays, and its wall time."""

    generation: Generation
    stats: Stats
    commit_step: np.ndarray  # int32 [B, L]  -1: prompt, or never committed
    prefill_s: float
    decode_s: float


def compiled(
    method: Callable,
    model: Model | tuple,
    params: Params,
    prompt: Prompt,
    *,
    is_dated: bool = True,
    mesh: Mesh | None = None,
    **settings: Any,
) -> Programs:
    """Checks `settings` (knobs and sizes) and compiles `method` for them.

    Models, parameters and prompt as for `pdecode.decode.run`; only the shapes of the
    arrays matter, and with `mesh`, which all are then on, their places.
    Without `is_dated` the loop is exactly that of `decode` and the commit steps are all
    -1. Raises what `knobs.split` and the method raise.
    """
    models = (model,) if isinstance(model, Model) else tuple(model)
    traced, sizes = knob_rules.split(method, settings)
    if mesh is not None:
        traced = sharding.replicate(traced, mesh)
    static: dict[str, Any] = {
        "method": method,
        "models": models,
        "sizes": tuple(sorted(sizes.items())),
        "is_dated": is_dated,
    }
    leaves, tree = jax.tree.flatten((params, prompt, traced))
    shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    name = (*static.values(), mesh, tree, shapes)
    if name in _kept:
        return _kept[name]._replace(knobs=traced, compile_s=0.0, num_cached=0)

    began, hits = time.perf_counter(), _cache_hits()
    key = jax.random.key(0)
    with on(mesh):
        if mesh is not None:
            key = sharding.replicate(key, mesh)
        start = _start.lower(params, prompt, key, traced, **static).compile()
        carry = _start.eval_shape(params, prompt, key, traced, **static)
        if mesh is not None:
            # The loop finds what `start` made where the compiler put it.
            carry = jax.tree.map(_placed, carry, start.output_shardings)
        loop = _loop.lower(params, prompt, carry, traced, **static).compile()
    programs = Programs(
        start,
        loop,
        traced,
        time.perf_counter() - began,
        _cache_hits() - hits,
    )
    if len(_kept) >= MAX_KEPT:
        del _kept[next(iter(_kept))]
    _kept[name] = programs
    return programs


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Puts `mesh` in context, which kernels are mapped over where they are traced."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def timed(programs: Programs, params: Params, prompt: Prompt, key: Array) -> Decoded:
    """Decodes once, waiting for the device before and after each program."""
    jax.block_until_ready((params, prompt, key, programs.knobs))
    began = time.perf_counter()
    carry = jax.block_until_ready(programs.start(params, prompt, key, programs.knobs))
    filled = time.perf_counter()
    result = jax.block_until_ready(programs.loop(params, prompt, carry, programs.knobs))
    ended = time.perf_counter()
    result = processes.whole(result)
    return Decoded(*result, prefill_s=filled - began, decode_s=ended - filled)


def host_step(method: Callable, model: Model | tuple, settings: dict[str, Any]):
    """One jitted (params, carry, knobs) -> (carry, done []), to drive from the host.

    The carry is what `Programs.start` gave.
    """
    models = (model,) if isinstance(model, Model) else tuple(model)
    _, sizes = knob_rules.split(method, settings)

    @jax.jit
    def step(params, carry, traced):
        decoder = _decoder(method, models, sizes, traced)
        carry = decode.turn_once(decoder, params, carry)
        return carry, decoder.done(carry.state).all()

    return step


def _placed(leaf: Array, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _decoder(method, models, sizes, traced):
    return method(*models, **dict(sizes), **traced)


_STATIC = ("method", "models", "sizes", "is_dated")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _start(params, prompt, key, traced, *, method, models, sizes, is_dated):
    decoder = _decoder(method, models, sizes, traced)
    if is_dated:
        decoder = _dated(decoder, prompt)
    return decode.start(decoder, params, prompt, key)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _loop(params, prompt, carry, traced, *, method, models, sizes, is_dated):
    decoder = _decoder(method, models, sizes, traced)
    limit = decode.step_limit(decoder, prompt)
    if is_dated:
        decoder = _dated(decoder, prompt)
    carry = decode.loop(decoder, params, carry, limit)
    generation = decode.finish(decoder, carry.state)
    steps = jnp.full(generation.tokens.shape, -1, jnp.int32)
    if is_dated:
        steps = decode.commit_steps(carry.state.saved, generation.committed)
    return generation, decode.stats_of(carry.counts), steps


def _dated(decoder: Decoder, prompt: Prompt) -> Decoder:
    """`decoder`, which also keeps what was committed after each of its steps."""
    return decode.with_trace(
        decoder,
        lambda state, info: decoder.output(state).committed,
        decode.step_limit(decoder, prompt),
    )


_kept: dict[tuple, Programs] = {}
_hits = threading.local()


def _count_hit(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _hits.count = getattr(_hits, "count", 0) + 1


def _cache_hits() -> int:
    """How many programs this thread read from the persistent cache so far."""
    return getattr(_hits, "count", 0)


jax.monitoring.register_event_listener(_count_hit)
