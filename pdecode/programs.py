"""A decode as two programs, so that compile, prefill and decode are told apart.

`pdecode.decode.run` is one program. Here the decoder's `init` (which holds the prefill)
and its loop are two, with the same results, and the loop also notes at which step each
position was committed.
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

from pdecode import decode, rng, sharding
from pdecode import knobs as knob_rules
from pdecode.contracts import Generation, Model, Params, Prompt
from pdecode.decode import Stats
from pdecode.sharding import processes

MAX_KEPT = 64  # programs kept in memory, so that a second call compiles nothing


class Programs(NamedTuple):
    """A method, compiled for models, sizes and the shapes of one batch."""

    start: Callable  # (params, prompt, key, knobs) -> (keys, state, counts)
    loop: Callable  # (params, keys, state, counts, knobs) -> (generation, stats, steps)
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
    static = {"method": method, "models": models, "sizes": tuple(sorted(sizes.items()))}
    leaves, tree = jax.tree.flatten((params, prompt, traced))
    shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    name = (*static.values(), is_dated, mesh, tree, shapes)
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
        loop = _loop.lower(params, *carry, traced, is_dated=is_dated, **static)
        loop = loop.compile()
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
    result = jax.block_until_ready(programs.loop(params, *carry, programs.knobs))
    ended = time.perf_counter()
    result = processes.whole(result)
    return Decoded(*result, prefill_s=filled - began, decode_s=ended - filled)


def host_step(method: Callable, model: Model | tuple, settings: dict[str, Any]):
    """One jitted (params, keys, state, counts, knobs) -> (state, counts, done []).

    For driving from the host what `Programs.start` began.
    """
    models = (model,) if isinstance(model, Model) else tuple(model)
    _, sizes = knob_rules.split(method, settings)

    @jax.jit
    def step(params, keys, state, counts, traced):
        decoder = _decoder(method, models, sizes, traced)
        state, info = decoder.step(params, keys, state)
        return state, decode.count(counts, info), decoder.done(state).all()

    return step


def committed(state: Any) -> Array:
    """bool [B, L]: positions that a decoder's state holds as generated and committed.

    Knows the states of the families by their fields. Any other state must keep
    `log_probs`, zero where nothing was committed.
    """
    place = jnp.arange(state.tokens.shape[1])[None]
    if hasattr(state, "masked"):
        return state.generated & ~state.masked
    if hasattr(state, "decided"):
        return state.decided & (place >= state.prompt_end[:, None])
    if hasattr(state, "length"):
        return (place >= state.prompt_end[:, None]) & (place < state.length[:, None])
    return state.log_probs != 0


def _placed(leaf: Array, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _decoder(method, models, sizes, traced):
    return method(*models, **dict(sizes), **traced)


@functools.partial(jax.jit, static_argnames=("method", "models", "sizes"))
def _start(params, prompt, key, traced, *, method, models, sizes):
    decoder = _decoder(method, models, sizes, traced)
    keys = rng.row_keys(key, prompt.row_ids)
    state, prefill = decoder.init(params, keys, prompt)
    return keys, state, decode.new_counts(prefill)


@functools.partial(jax.jit, static_argnames=("method", "models", "sizes", "is_dated"))
def _loop(params, keys, state, counts, traced, *, method, models, sizes, is_dated):
    decoder = _decoder(method, models, sizes, traced)

    def unfinished(carry):
        state, counts, _ = carry
        return (counts.num_steps < decoder.max_steps) & ~decoder.done(state).all()

    def turn(carry):
        state, counts, steps = carry
        state, info = decoder.step(params, keys, state)
        if not is_dated:
            return state, decode.count(counts, info), steps
        is_committed = committed(state)
        # A position that was reopened is dated anew.
        now = jnp.where(is_committed & (steps < 0), counts.num_steps, steps)
        return state, decode.count(counts, info), jnp.where(is_committed, now, -1)

    steps = jnp.full(state.tokens.shape, -1, jnp.int32)
    state, counts, steps = jax.lax.while_loop(unfinished, turn, (state, counts, steps))
    return decode.finish(decoder, state), decode.stats_of(counts), steps


_kept: dict[tuple, Programs] = {}
_hits = threading.local()


def _count_hit(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _hits.count = getattr(_hits, "count", 0) + 1


def _cache_hits() -> int:
    """How many programs this thread read from the persistent cache so far."""
    return getattr(_hits, "count", 0)


jax.monitoring.register_event_listener(_count_hit)
