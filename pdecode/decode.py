"""The loop: `decode` compiles it, `stream` runs the same step from the host.

`run` is the documented entry: it checks knobs and sizes, builds the recipe inside one
jitted function, and traces once for all values of the knobs.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import knobs as knob_rules
from pdecode import rng, shown
from pdecode.contracts import (
    STOPPED_BY,
    Decoder,
    Generation,
    Model,
    Params,
    Prompt,
    StepInfo,
)

__all__ = [
    "Stats",
    "commit_steps",
    "decode",
    "decode_state",
    "run",
    "stream",
    "with_trace",
]

# The last bin of `Stats.committed_per_call` counts calls that committed this or more.
MAX_COMMITTED_BIN = 64


class Stats(NamedTuple):
    """Counts of a decode. A row's counters stand still once it is done."""

    num_steps: Array  # int32 []  turns of the loop
    num_calls: Array  # int32 [B]  target calls while the row was active (NFE)
    num_prefill_calls: Array  # int32 [B]
    num_prefill_tokens: Array  # int32 [B]  lanes asked for by the prefill
    num_prefill_draft_calls: Array  # int32 [B]
    num_prefill_draft_tokens: Array  # int32 [B]
    num_query_tokens: Array  # int32 [B]  lanes asked for, prefill apart
    num_query_tokens_computed: Array  # int32 [B]  padding lanes included
    num_draft_calls: Array  # int32 [B]  calls of a drafter's own model, prefill apart
    num_draft_tokens: Array  # int32 [B]  their lanes asked for
    num_draft_tokens_computed: Array  # int32 [B]
    num_dispatches: Array  # int32 []  target programs run for the batch
    num_committed: Array  # int32 [B]  the EOS included
    num_proposed: Array  # int32 [B]
    num_revoked: Array  # int32 [B]
    committed_per_call: Array  # int32 [B, 65]  steps by tokens committed

    def __repr__(self) -> str:
        return shown.short(self)


# Counters of rows, which the loop carries as one array: one addition a step.
_OF_ROWS = (
    "num_calls",
    "num_query_tokens",
    "num_query_tokens_computed",
    "num_draft_calls",
    "num_draft_tokens",
    "num_draft_tokens_computed",
    "num_committed",
    "num_proposed",
    "num_revoked",
)


# Those of the prefill, which are called num_prefill_...
_OF_PREFILL = ("calls", "query_tokens", "draft_calls", "draft_tokens")


class Counts(NamedTuple):
    """`Stats` as the loop carries it."""

    num_steps: Array  # int32 []
    num_dispatches: Array  # int32 []
    of_rows: Array  # int32 [9 + 65, B]  _OF_ROWS, then committed_per_call
    prefill: Array  # int32 [4, B]  _OF_PREFILL


class Carry(NamedTuple):
    """What the loop carries, and the keys [B] that stay as they are."""

    keys: Array
    state: Any
    counts: Counts


class Recorded(NamedTuple):
    """State of `with_trace`: the decoder's own state and what was saved."""

    inner: Any
    saved: Any  # leaves [max_steps, ...]; turns not taken hold zeros
    step: Array  # int32 []


class Dated(NamedTuple):
    """State of `dated`: the decoder's own, and when positions were committed."""

    inner: Any
    committed: Array  # bool [B, L]  after the last step
    when: Array  # int32 [B, L]  step of the last commit; -1: none
    step: Array  # int32 []


def decode(
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    key: Array,
    *,
    max_steps: int | None = None,
) -> tuple[Generation, Stats]:
    """Runs `decoder` until every row is done or `max_steps` turns were taken.

    Call it inside `jax.jit`; `max_steps` is static (default: the decoder's own bound).
    A row that `max_steps` cut short has stopped_by "max_steps".
    """
    state, stats = decode_state(decoder, params, prompt, key, max_steps=max_steps)
    return finish(decoder, state), stats


def decode_state(
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    key: Array,
    *,
    max_steps: int | None = None,
) -> tuple[Any, Stats]:
    """`decode`, but returns the decoder's last state: what `with_trace` saved is there.

    `finish(decoder, state)` turns it into a Generation.
    """
    limit = step_limit(decoder, prompt, max_steps)
    carry = loop(decoder, params, start(decoder, params, prompt, key), limit)
    return carry.state, stats_of(carry.counts)


def by_role(params: Params) -> dict[str, Params]:
    """`params` by role; the bare params of one model become {"model": params}."""
    is_named = isinstance(params, dict) and "model" in params
    return params if is_named else {"model": params}


def step_limit(decoder: Decoder, prompt: Prompt, max_steps: int | None = None) -> int:
    """A bound on the turns of the loop: `max_steps`, or the decoder's own."""
    if max_steps is not None:
        return max_steps
    holes = 0 if prompt.masked is None else prompt.masked.shape[1]
    return min(decoder.max_steps + holes, jnp.iinfo(jnp.int32).max)


def start(decoder: Decoder, params: Params, prompt: Prompt, key: Array) -> Carry:
    """The prefill: what the loop begins with."""
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # of jax.random.PRNGKey
    keys = rng.row_keys(key, prompt.row_ids)
    state, prefill = decoder.init(by_role(params), keys, prompt)
    return Carry(keys, state, new_counts(prefill))


def loop(decoder: Decoder, params: Params, carry: Carry, limit: Array | int) -> Carry:
    """Turns until every row is done, or `limit` of them were taken in all."""
    params = by_role(params)

    def unfinished(moving):
        state, counts = moving
        return (counts.num_steps < limit) & ~decoder.done(state).all()

    def turn(moving):
        state, counts = moving
        state, info = decoder.step(params, carry.keys, state)
        return state, count(counts, info)

    moving = jax.lax.while_loop(unfinished, turn, (carry.state, carry.counts))
    return Carry(carry.keys, *moving)


def turn_once(decoder: Decoder, params: Params, carry: Carry) -> Carry:
    """One turn of `loop`, for driving it from the host."""
    state, info = decoder.step(by_role(params), carry.keys, carry.state)
    return Carry(carry.keys, state, count(carry.counts, info))


def finish(decoder: Decoder, state: Any) -> Generation:
    """The generation of `state`; rows that are not done were stopped by max_steps."""
    generation = decoder.output(state)
    cut_short = STOPPED_BY.index("max_steps")
    stopped_by = jnp.where(decoder.done(state), generation.stopped_by, cut_short)
    return generation._replace(stopped_by=stopped_by)


def stream(
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    key: Array,
    *,
    max_steps: int | None = None,
) -> Iterator[tuple[Generation, Stats]]:
    """The same decode from the host: yields the result so far after every step."""
    limit = step_limit(decoder, prompt, max_steps)

    @jax.jit
    def begin(params, prompt, key):
        carry = start(decoder, params, prompt, key)
        return carry, decoder.done(carry.state).all()

    @jax.jit
    def move(params, carry):
        carry = turn_once(decoder, params, carry)
        result = finish(decoder, carry.state), stats_of(carry.counts)
        return carry, result, decoder.done(carry.state).all()

    carry, is_done = begin(params, prompt, key)
    while int(carry.counts.num_steps) < limit and not bool(is_done):
        carry, result, is_done = move(params, carry)
        yield result


def with_trace(
    decoder: Decoder, save: Callable[[Any, StepInfo], Any], max_steps: int
) -> Decoder:
    """`decoder` that also keeps `save(state, info)` of every step.

    Its state is a `Recorded`; run it with `decode_state` and read `state.saved`, leaves
    [max_steps, ...]. `save` sees the state after the step and should return small
    arrays, such as tokens.
    """

    def init(params, keys, prompt):
        inner, info = decoder.init(params, keys, prompt)
        shapes = jax.eval_shape(save, inner, info)
        saved = jax.tree.map(
            lambda leaf: jnp.zeros((max_steps, *leaf.shape), leaf.dtype), shapes
        )
        return Recorded(inner, saved, jnp.zeros((), jnp.int32)), info

    def step(params, keys, state):
        inner, info = decoder.step(params, keys, state.inner)
        saved = jax.tree.map(
            lambda leaf, now: leaf.at[state.step].set(now, mode="drop"),
            state.saved,
            save(inner, info),
        )
        return Recorded(inner, saved, state.step + 1), info

    def output(state):
        return decoder.output(state.inner)

    def done(state):
        return decoder.done(state.inner)

    return decoder._replace(init=init, step=step, done=done, output=output)


def dated(decoder: Decoder) -> Decoder:
    """`decoder` that also notes at which step each position was committed.

    Its state is a `Dated`. A position that was reopened is dated by its last commit.
    """

    def init(params, keys, prompt):
        inner, info = decoder.init(params, keys, prompt)
        committed = decoder.output(inner).committed
        when = jnp.full(committed.shape, -1, jnp.int32)
        return Dated(inner, committed, when, jnp.zeros((), jnp.int32)), info

    def step(params, keys, state):
        inner, info = decoder.step(params, keys, state.inner)
        committed = decoder.output(inner).committed
        when = jnp.where(committed & ~state.committed, state.step, state.when)
        return Dated(inner, committed, when, state.step + 1), info

    def done(state):
        return decoder.done(state.inner)

    def output(state):
        return decoder.output(state.inner)

    return decoder._replace(init=init, step=step, done=done, output=output)


def commit_steps(state: Dated) -> Array:
    """int32 [B, L]: the step that committed each position, counted from 0; else -1."""
    return jnp.where(state.committed, state.when, -1)


def run(
    method: Callable[..., Decoder],
    model: Model | tuple,
    params: Params,
    prompt: Prompt,
    key: Array,
    *,
    knobs: dict[str, float] | None = None,
    max_steps: int | None = None,
    **sizes: Any,
) -> tuple[Generation, Stats]:
    """Decodes `prompt` with `method(*models, **knobs, **sizes)`.

    `model` is a Model, or a tuple such as (target, drafter) with `params` to match.
    Knobs (see `pdecode.knobs`) are traced: changing one never compiles again. Sizes and
    choices are static. Both are checked here, against the ranges in the method's
    signature; an unknown name raises ValueError listing the known ones.
    """
    static, traced = _bind(method, model, {**(knobs or {}), **sizes})
    return _run(params, prompt, key, traced, max_steps=max_steps, **static)


def traced(
    method: Callable[..., Decoder],
    model: Model | tuple,
    params: Params,
    prompt: Prompt,
    key: Array,
    *,
    knobs: dict[str, float] | None = None,
    max_steps: int | None = None,
    **sizes: Any,
):
    """The program that `run` would run, traced, and its knobs.

    Returns (`jax.stages.Traced`, knobs). `traced.lower().compile()(params, prompt, key,
    knobs)` decodes, so that compile time can be told from run time; it lowers for other
    platforms too. Arguments may be `jax.ShapeDtypeStruct`s, with shardings on devices
    of a topology that is not here.
    """
    static, bound = _bind(method, model, {**(knobs or {}), **sizes})
    traced = _run.trace(params, prompt, key, bound, max_steps=max_steps, **static)
    return traced, bound


def _bind(method, model, values):
    models = (model,) if isinstance(model, Model) else tuple(model)
    traced, sizes = knob_rules.split(method, values)
    static = {"method": method, "models": models, "sizes": tuple(sorted(sizes.items()))}
    return static, traced


@functools.partial(jax.jit, static_argnames=("method", "models", "sizes", "max_steps"))
def _run(params, prompt, key, traced, *, method, models, sizes, max_steps):
    decoder = method(*models, **dict(sizes), **traced)
    return decode(decoder, params, prompt, key, max_steps=max_steps)


def new_counts(prefill: StepInfo) -> Counts:
    """Counters at zero, but for what the prefill did."""
    none = jnp.zeros((), jnp.int32)
    num_counters = len(_OF_ROWS) + MAX_COMMITTED_BIN + 1
    return Counts(
        num_steps=none,
        num_dispatches=none,
        of_rows=jnp.zeros((num_counters, *prefill.num_calls.shape), jnp.int32),
        prefill=jnp.stack([getattr(prefill, f"num_{name}") for name in _OF_PREFILL]),
    )


def count(counts: Counts, info: StepInfo) -> Counts:
    """`counts` with one step added; a row without a call adds to no histogram bin."""
    # Selects, which become one operation with the sum; what is joined does not.
    nth = np.arange(counts.of_rows.shape[0])[:, None]
    bins = jnp.clip(info.num_committed, 0, MAX_COMMITTED_BIN)[None]
    is_counted = (nth - len(_OF_ROWS) == bins) & (info.num_calls > 0)[None]
    added = is_counted.astype(jnp.int32)
    for i, name in enumerate(_OF_ROWS):
        added = jnp.where(nth == i, getattr(info, name)[None], added)
    return Counts(
        num_steps=counts.num_steps + 1,
        num_dispatches=counts.num_dispatches + info.num_dispatches,
        of_rows=counts.of_rows + added,
        prefill=counts.prefill,
    )


def stats_of(counts: Counts) -> Stats:
    """The counters by name; of numpy arrays as well."""
    names = [f"num_prefill_{name.removeprefix('query_')}" for name in _OF_PREFILL]
    return Stats(
        num_steps=counts.num_steps,
        num_dispatches=counts.num_dispatches,
        committed_per_call=counts.of_rows[len(_OF_ROWS) :].T,
        **dict(zip(names, counts.prefill)),
        **dict(zip(_OF_ROWS, counts.of_rows)),
    )
