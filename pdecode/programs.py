"""A method compiled once for models, shapes and a mesh, and kept.

`pdecode.decode.run` is one program. Here its `start` (which holds the prefill) and its
`loop` are two, so that compile, prefill and decode are told apart. The loop stops where
it is told, so the same program decodes at one go or a few steps at a time, and it also
notes at which step each position was committed.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdecode import decode, precision, sharding
from pdecode import knobs as knob_rules
from pdecode.contracts import Generation, Model, Params, Prompt
from pdecode.decode import Stats
from pdecode.sharding import processes

MAX_KEPT = 64  # programs kept in memory, so that a second call compiles nothing


class Programs(NamedTuple):
    """A method, compiled for models, sizes and the shapes of one batch."""

    start: Callable  # (params, prompt, key, knobs) -> decode.Carry
    # (params, carry, knobs, until int32 []) -> (carry, is_done bool [], Shown), when
    # `until` steps were taken in all. The carry that goes in is used up.
    loop: Callable
    limit: int  # a bound on the steps
    knobs: dict[str, Array]
    compile_s: float  # tracing, lowering and compiling; 0 if kept from before
    num_cached: int  # of the two, read from the persistent compilation cache
    mesh: Mesh | None = None  # where all of it lies; None: on one device


class Shown(NamedTuple):
    """What the loop returns beside its carry, which has the counters."""

    generation: Generation
    commit_step: Array  # int32 [B, L]  -1: prompt, or never committed


class Progress(NamedTuple):
    """What a decode has come to, as numpy arrays."""

    generation: Generation
    stats: Stats
    commit_step: np.ndarray  # int32 [B, L]


class Decoded(NamedTuple):
    """One decode of one batch, as numpy arrays, and its wall time."""

    generation: Generation
    stats: Stats
    commit_step: np.ndarray  # int32 [B, L]
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
    limit = decode.step_limit(_decoder(method, models, sizes, traced), prompt)
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
    name = (*static.values(), mesh, tree, shapes, precision.level())
    if name in _kept:
        return _kept[name]._replace(knobs=traced, compile_s=0.0, num_cached=0)

    key, until = jax.random.key(0), jnp.int32(0)
    began, hits = time.perf_counter(), _cache_hits()
    with on(mesh):
        if mesh is not None:
            key, until = sharding.replicate((key, until), mesh)
        start = _start.lower(params, prompt, key, traced, **static).compile()
        carry = _start.eval_shape(params, prompt, key, traced, **static)
        places = None
        if mesh is not None:
            # The loop finds what `start` made where the compiler put it, and leaves it
            # there, so that it can go on from what it returned.
            places = start.output_shardings
            carry = jax.tree.map(_placed, carry, places)
        goes_on = jax.jit(
            _loop, static_argnames=_STATIC, donate_argnums=1,
            out_shardings=None if places is None else (places, None, None),
        )  # fmt: skip
        loop = goes_on.lower(params, carry, traced, until, **static).compile()
    programs = Programs(
        start=start,
        loop=loop,
        limit=limit,
        knobs=traced,
        compile_s=time.perf_counter() - began,
        num_cached=_cache_hits() - hits,
        mesh=mesh,
    )
    if len(_kept) >= MAX_KEPT:
        del _kept[next(iter(_kept))]
    _kept[name] = programs
    return programs


def forget() -> None:
    """Lets go of every program kept in memory."""
    _kept.clear()


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Puts `mesh` in context, which kernels are mapped over where they are traced."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def timed(programs: Programs, params: Params, prompt: Prompt, key: Array) -> Decoded:
    """Decodes once, waiting for the device before and after each program."""
    until = _bound(programs, programs.limit)
    jax.block_until_ready((params, prompt, key, programs.knobs, until))
    began = time.perf_counter()
    carry = jax.block_until_ready(programs.start(params, prompt, key, programs.knobs))
    filled = time.perf_counter()
    carry, _, shown = jax.block_until_ready(
        programs.loop(params, carry, programs.knobs, until)
    )
    ended = time.perf_counter()
    made = _progress(carry, shown)
    return Decoded(*made, prefill_s=filled - began, decode_s=ended - filled)


def steps(
    programs: Programs, params: Params, prompt: Prompt, key: Array
) -> Iterator[Progress]:
    """The same decode by the same programs, one step at a time, as numpy arrays."""
    carry = programs.start(params, prompt, key, programs.knobs)
    for number in range(1, programs.limit + 1):
        carry, is_done, shown = programs.loop(
            params, carry, programs.knobs, _bound(programs, number)
        )
        yield _progress(carry, shown)
        if bool(is_done):
            return


def _progress(carry: decode.Carry, shown: Shown) -> Progress:
    # Counters get their names here: what a program returns one by one costs it time.
    counts, (generation, when) = processes.whole((carry.counts, shown))
    return Progress(generation, decode.stats_of(counts), when)


def host_step(method: Callable, model: Model | tuple, settings: dict[str, Any]):
    """One jitted (params, carry, knobs) -> (carry, done []), to drive from the host.

    The carry is what `Programs.start` gave, without dates.
    """
    models = (model,) if isinstance(model, Model) else tuple(model)
    _, sizes = knob_rules.split(method, settings)

    @jax.jit
    def step(params, carry, traced):
        decoder = _decoder(method, models, sizes, traced)
        carry = decode.turn_once(decoder, params, carry)
        return carry, decoder.done(carry.state).all()

    return step


def _bound(programs: Programs, number: int) -> Array:
    until = jnp.int32(number)
    mesh = programs.mesh
    return until if mesh is None else sharding.replicate(until, mesh)


def _placed(leaf: Array, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _decoder(method, models, sizes, traced):
    return method(*models, **dict(sizes), **traced)


_STATIC = ("method", "models", "sizes", "is_dated")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _start(params, prompt, key, traced, *, method, models, sizes, is_dated):
    decoder = _decoder(method, models, sizes, traced)
    if is_dated:
        decoder = decode.dated(decoder)
    return decode.start(decoder, params, prompt, key)


def _loop(params, carry, traced, until, *, method, models, sizes, is_dated):
    decoder = _decoder(method, models, sizes, traced)
    if is_dated:
        decoder = decode.dated(decoder)
    carry = decode.loop(decoder, params, carry, until)
    generation = decode.finish(decoder, carry.state)
    when = jnp.full(generation.tokens.shape, -1, jnp.int32)
    if is_dated:
        when = decode.commit_steps(carry.state)
    return carry, decoder.done(carry.state).all(), Shown(generation, when)


_kept: dict[tuple, Programs] = {}
_hits = threading.local()


def _count_hit(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _hits.count = getattr(_hits, "count", 0) + 1


def _cache_hits() -> int:
    """How many programs this thread read from the persistent cache so far."""
    return getattr(_hits, "count", 0)


jax.monitoring.register_event_listener(_count_hit)
