"""Frames drawn ahead of a player: the next ones as if the action went on.

NFD: Cheng et al., 2025, arXiv:2506.01380. A frame can be drawn once its action is
there, and actions repeat. So when one arrives, its frame is drawn and the next
`num_ahead` - 1 with it, in one program, as if the action stayed. As the next actions
arrive, frames that were drawn for the same action are shown at once; at the first other
one the rest is thrown away. Deviation: distillation to few steps is not here, and the
frames of a round are drawn one behind the other, each from the clean ones before it.

Guarantee: the film is that of `frame_blocks.draw` on the actions that came, whatever
they are: what is shown was drawn as it would have been, and noise is named by row,
frame and step. A frame thrown away shares its noise with the one that is drawn for its
place later; nobody sees it, and the actions do not depend on it.
Cost: what is saved is waiting, not calls: a run of n equal actions waits for
ceil(n / num_ahead) rounds, of `num_ahead` frames each, part of which may be lost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Params
from pdecode.families import frame_blocks
from pdecode.families.frame_blocks import Plan, State


class Played(NamedTuple):
    """The result."""

    film: Array  # float32 [B, T, N, D]
    num_rounds: Array  # int32 [B]  actions whose frame was not there yet
    num_calls: Array  # int32 [B]  of all frames drawn
    num_drawn: Array  # int32 [B]  frames drawn, those thrown away included


def played(
    plan: Plan, params: Params, keys: Array, first: Array, given: Array, num_ahead: int
) -> Played:
    """The film behind frames `first` [B, G, N, D] as its actions arrive.

    `given` int32 [B, T, 2] holds the class and the action of each frame; that of frame
    t is looked at only when t is next. Keys [B] are of rows. ValueError for less than
    one frame ahead, and where no frame is left to draw.
    """
    num_given, num_frames = first.shape[1], given.shape[1]
    if num_ahead < 1:
        raise ValueError(f"{num_ahead=} must be at least 1: the frame that is next")
    if num_given >= num_frames:
        raise ValueError(
            f"{num_given} frames are there already of the {num_frames} asked for"
        )
    state, _ = frame_blocks.begin(plan, params, first, given, slack=num_ahead - 1)
    zero = jnp.zeros_like(state.index)

    def goes_on(carry) -> Array:
        return (carry[0].index < num_frames).any()

    def turn(carry):
        state, rounds, drawn = carry
        active = state.index < num_frames
        ahead = drawn_ahead(plan, params, keys, state, given, num_ahead)
        count = jnp.where(active, num_shown(state.index, given, num_ahead), 0)
        return (
            ahead._replace(index=state.index + count),
            rounds + active,
            drawn + ahead.index - state.index,
        )

    state, rounds, drawn = jax.lax.while_loop(goes_on, turn, (state, zero, zero))
    return Played(state.film, rounds, state.num_calls, drawn)


def drawn_ahead(
    plan: Plan, params: Params, keys, state: State, given: Array, num_ahead: int
) -> State:
    """The state with `num_ahead` more frames, all for the action that is next."""
    num_frames = given.shape[1]
    nth = jnp.arange(len(keys))
    arrived = given[nth, jnp.minimum(state.index, num_frames - 1)]
    assumed = jnp.broadcast_to(arrived[:, None], given.shape)

    def turn(_, state: State) -> State:
        active = state.index < num_frames
        return frame_blocks.next_frame(plan, params, keys, state, active)

    return jax.lax.fori_loop(0, num_ahead, turn, state._replace(given=assumed))


def num_shown(index: Array, given: Array, num_ahead: int) -> Array:
    """Frames of a round that their actions agree with, int32 [B]; the first does."""
    num_frames = given.shape[1]
    place = index[:, None] + jnp.arange(num_ahead, dtype=jnp.int32)[None]
    inside = place < num_frames
    came = jnp.take_along_axis(
        given, jnp.minimum(place, num_frames - 1)[..., None], axis=1
    )
    same = (came == came[:, :1]).all(-1) & inside
    return jnp.cumprod(same.astype(jnp.int32), axis=1).sum(1, dtype=jnp.int32)
