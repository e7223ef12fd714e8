"""Frame after frame of numbers, each denoised from a cache of clean ones.

Values are no tokens, so this is no `Decoder`: a film is float32 [B, T, N, D], N squares
of D numbers a frame (`models.denoiser`). A frame begins as noise, is denoised in a
fixed number of steps, and only then are its keys and values kept: those of a noised
frame would be of what nobody will see. Two plans:

`acdit` (Hu et al., 2024, arXiv:2412.07720): Euler steps of the flow; a finished frame
is stored by the first call of the next one, which has both. Deviation: the paper's
solver is DPM-Solver, and its guidance is not here.

`inferix` (Inferix Team, 2025, arXiv:2511.20714, which decodes as Self Forcing, Huang et
al., 2025, arXiv:2506.08009): few steps, each of which guesses the clean frame and
noises it anew to the next level; a call of its own stores it; the cache keeps the first
frames and the latest ones. Deviation: a block is one frame.

Guarantee: the frames are those of the same steps without a cache, all of what each sees
evaluated anew in every call. Noise is named by row, frame and step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Cache, Params
from pdecode.models import denoiser
from pdecode.models.denoiser import Call, Net

_NOWHERE = 1 << 20  # a place beyond every cache


class Plan(NamedTuple):
    """How frames are denoised; hashable, checked by who makes it."""

    net: Net
    num_steps: int  # K, calls a frame
    is_renoised: bool = False  # each step guesses the clean frame and noises it anew
    is_apart: bool = False  # a call of its own stores a frame
    window: int | None = None  # frames before it that a frame sees; None: all
    sinks: int = 0  # first frames that stay visible besides


class State(NamedTuple):
    """Carry of the loop; every row is at a frame of its own."""

    film: Array  # float32 [B, T, N, D]
    given: Array  # int32 [B, T, 2]  what each frame is asked for
    index: Array  # int32 [B]  frames that are there
    held: Array  # int32 [B, P]  the frame at each place of the cache; -1: none
    cache: Cache
    num_calls: Array  # int32 [B]
    num_lanes: Array  # int32 [B]  squares asked for in them


class Drawn(NamedTuple):
    """The result."""

    film: Array  # float32 [B, T, N, D]  given frames as they came
    num_prefill_calls: Array  # int32 [B]  that stored given frames
    num_calls: Array  # int32 [B]
    num_lanes: Array  # int32 [B]


def acdit(net: Net, *, num_steps: int = 25) -> Plan:
    """`num_steps` Euler steps a frame. Cost: as many calls, the first of two frames."""
    return _checked(Plan(net, num_steps))


def inferix(
    net: Net, *, num_steps: int = 4, window: int | None = None, sinks: int = 0
) -> Plan:
    """`num_steps` guesses a frame, over the last `window` frames and the first `sinks`.

    Cost: `num_steps` + 1 calls a frame. ValueError for a window without a frame.
    """
    return _checked(Plan(net, num_steps, True, True, window, sinks))


def _checked(plan: Plan) -> Plan:
    for name, low in (("num_steps", 1), ("window", 1), ("sinks", 0)):
        value = getattr(plan, name)
        if value is not None and value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    if plan.sinks and plan.window is None:
        raise ValueError(
            f"sinks={plan.sinks} without a window: all frames are seen anyway"
        )
    return plan


def draw(plan: Plan, params: Params, keys: Array, first: Array, given: Array) -> Drawn:
    """The film that goes on from frames `first` [B, G, N, D].

    `given` int32 [B, T, 2] says what each frame is asked for; keys [B] are of rows.
    ValueError where no frame is left to draw.
    """
    num_given, num_frames = first.shape[1], given.shape[1]
    if num_given >= num_frames:
        raise ValueError(
            f"{num_given} frames are there already of the {num_frames} asked for"
        )
    state, num_prefill = begin(plan, params, first, given)
    active = jnp.ones(len(keys), bool)

    def turn(_, state: State) -> State:
        return next_frame(plan, params, keys, state, active)

    state = jax.lax.fori_loop(num_given, num_frames, turn, state)
    prefill = jnp.full_like(state.num_calls, num_prefill)
    return Drawn(state.film, prefill, state.num_calls, state.num_lanes)


def begin(
    plan: Plan, params: Params, first: Array, given: Array, slack: int = 0
) -> tuple[State, int]:
    """The state behind `first`, and the calls that stored it.

    `slack` frames may be drawn and thrown away without any that is seen being lost.
    """
    batch, num_given, *square = first.shape
    num_frames = given.shape[1]
    film = jnp.zeros((batch, num_frames, *square), jnp.float32)
    room = num_frames
    if plan.window is not None:
        room = min(num_frames, plan.sinks + plan.window + slack)
    zero = jnp.zeros(batch, jnp.int32)
    state = State(
        film=film.at[:, :num_given].set(first),
        given=given,
        index=zero,
        held=jnp.full((batch, room), -1, jnp.int32),
        cache=denoiser.init_cache(plan.net, batch, room),
        num_calls=zero,
        num_lanes=zero,
    )
    # The last one is stored by the first call of the next frame, unless apart.
    count = max(num_given - (not plan.is_apart), 0)

    def stored(number, state: State) -> State:
        index = jnp.full_like(zero, number)
        return keep(plan, params, state, index, index >= 0)

    state = jax.lax.fori_loop(0, count, stored, state)
    return state._replace(index=zero + num_given), count


def next_frame(
    plan: Plan, params: Params, keys: Array, state: State, active: Array
) -> State:
    """The state with one more frame in rows that are `active` (bool [B])."""
    index, size = jnp.where(active, state.index, 0), plan.net.num_patches
    frame = fresh(plan, keys, index, 0)
    rides = active & (index > 0) & (not plan.is_apart)
    state, velocity = first_call(plan, params, state, index, frame, rides)
    frame = stepped(plan, keys, index, frame, velocity, 0)

    def turn(step, frame: Array) -> Array:
        call = present(plan, state, index, frame, step)
        velocity = denoiser.apply(plan.net, params, call, state.cache)[0][:, 0]
        return stepped(plan, keys, index, frame, velocity, step)

    frame = jax.lax.fori_loop(1, plan.num_steps, turn, frame)
    nth = jnp.arange(index.shape[0])
    where = jnp.where(active, index, state.film.shape[1])
    state = state._replace(film=state.film.at[nth, where].set(frame, mode="drop"))
    if plan.is_apart:
        state = keep(plan, params, state, index, active)
    num_calls = active * (plan.num_steps + plan.is_apart)
    return state._replace(
        index=state.index + active,
        num_calls=state.num_calls + num_calls,
        num_lanes=state.num_lanes + (num_calls + rides) * size,
    )


def first_call(plan: Plan, params, state: State, index, frame, rides):
    """The frame's first velocity [B, N, D], and the state.

    In rows that are not apart the frame before it rides in the call, and is stored.
    """
    call = present(plan, state, index, frame, 0)
    if plan.is_apart:
        return state, denoiser.apply(plan.net, params, call, state.cache)[0][:, 0]
    before = jnp.maximum(index - 1, 0)
    place = _place(plan, state, before, rides)
    # The frame before sees itself, the noised one both.
    clean = jnp.stack([rides, rides], 1)
    noised = jnp.stack([jnp.zeros_like(rides), jnp.ones_like(rides)], 1)
    both = Call(
        values=jnp.stack([_at(state.film, before), frame], 1),
        time=jnp.pad(call.time, ((0, 0), (1, 0))),
        is_noised=jnp.pad(call.is_noised, ((0, 0), (1, 0))),
        given=jnp.repeat(call.given, 2, 1),
        index=jnp.stack([before, index], 1),
        among=jnp.stack([clean, noised], 2),
        places=jnp.pad(place[:, None], ((0, 0), (0, 1)), constant_values=_NOWHERE),
        seen=_seen(plan, state, _first(plan, index), before),
    )
    velocity, cache = denoiser.apply(plan.net, params, both, state.cache)
    return _held(state, place, before)._replace(cache=cache), velocity[:, 1]


def present(plan: Plan, state: State, index: Array, frame: Array, step) -> Call:
    """The noised frame alone, which sees itself and what is stored."""
    yes = jnp.ones((len(index), 1), bool)
    return Call(
        values=frame[:, None],
        time=jnp.where(yes, level(plan, step), 0.0),
        is_noised=yes,
        given=_at(state.given, index)[:, None],
        index=index[:, None],
        among=yes[:, None],
        seen=_seen(plan, state, _first(plan, index), index),
    )


def keep(plan: Plan, params: Params, state: State, index: Array, active) -> State:
    """The state with clean frames `index` [B] of the film stored, by a call of that."""
    place = _place(plan, state, index, active)
    yes = jnp.ones((len(index), 1), bool)
    call = Call(
        values=_at(state.film, index)[:, None],
        time=jnp.zeros(yes.shape, jnp.float32),
        is_noised=~yes,
        given=_at(state.given, index)[:, None],
        index=index[:, None],
        among=yes[:, None],
        places=place[:, None],
        seen=_seen(plan, state, _first(plan, index, is_clean=True), index),
    )
    _, cache = denoiser.apply(plan.net, params, call, state.cache)
    return _held(state, place, index)._replace(cache=cache)


def level(plan: Plan, step) -> Array:
    """The noise level float32 [] before a step: from 1 down, and 0 behind the last."""
    return 1 - jnp.asarray(step, jnp.float32) / plan.num_steps


def stepped(plan: Plan, keys, index, frame: Array, velocity: Array, step) -> Array:
    """`frame` [B, N, D] at the next level."""
    here, there = level(plan, step), level(plan, step + 1)
    if not plan.is_renoised:
        return frame + (there - here) * velocity
    clean = frame - here * velocity
    return (1 - there) * clean + there * fresh(plan, keys, index, step + 1)


def fresh(plan: Plan, keys: Array, index: Array, step) -> Array:
    """Noise [B, N, D] of frames `index` [B] for the level before `step`."""
    round = jnp.full(index.shape, step, jnp.int32)
    keys = rng.noise(keys, rng.TARGET, index[:, None], round=round)[:, 0]
    shape = (plan.net.num_patches, plan.net.depth)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _first(plan: Plan, index: Array, is_clean: bool = False) -> Array:
    """The first frame behind the sinks that frame `index` sees.

    A clean frame counts in its window itself.
    """
    if plan.window is None:
        return jnp.zeros_like(index)
    return index - plan.window + is_clean


def _seen(plan: Plan, state: State, first: Array, stop: Array) -> Array:
    """bool [B, P]: places of frames from `first` to before `stop`, and of sinks."""
    held = state.held
    near = (held >= first[:, None]) | (held < plan.sinks)
    return (held >= 0) & near & (held < stop[:, None])


def _place(plan: Plan, state: State, index: Array, active: Array) -> Array:
    """Where frames `index` are stored, int32 [B]: sinks stay, others take turns."""
    room = state.held.shape[1]
    turn = plan.sinks + (index - plan.sinks) % max(room - plan.sinks, 1)
    place = jnp.where(index < plan.sinks, index, turn)
    return jnp.where(active, place, _NOWHERE)


def _held(state: State, place: Array, index: Array) -> State:
    nth = jnp.arange(len(index))
    return state._replace(held=state.held.at[nth, place].set(index, mode="drop"))


def _at(leaf: Array, index: Array) -> Array:
    """leaf[b, index[b]] of [B, T, ...]."""
    return leaf[jnp.arange(len(index)), index]
