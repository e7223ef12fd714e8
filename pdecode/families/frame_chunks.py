"""A whole film at once, in chunks side by side that an interface joins.

Video Interface Networks: Dedhia et al., 2025, arXiv:2503.17539. All frames have one
noise level and go down in the same steps. In each, the interface reads the film, and
all chunks are denoised in one call, each from its own frames and the interface. What
two chunks say of a frame that both have is joined by weights that are linear along the
overlap in the first steps; in the others the earlier chunk's word counts. Values are no
tokens, so this is no `Decoder`, as in `frame_blocks`. Deviation: Euler steps of a
straight flow; `models.interfaces` has those of the network.

Guarantee: lossy; with one chunk it is the denoising of the whole film.
Cost: `num_steps` calls of the interface and as many of all chunks, however long the
film is, where `frame_blocks` makes as many a frame.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Params
from pdecode.models import interfaces
from pdecode.models.denoiser import Net


class Plan(NamedTuple):
    """How films are denoised; hashable."""

    net: Net
    num_steps: int
    chunk: int  # frames
    overlap: int  # frames that a chunk shares with the one before
    every: int  # the interface reads one frame of so many
    num_fused: int  # first steps whose overlaps are joined


class Drawn(NamedTuple):
    """The result."""

    film: Array  # float32 [B, T, N, D]  given frames as they came
    num_calls: Array  # int32 [B]  one of the interface and one of the chunks a step
    num_lanes: Array  # int32 [B]  squares in them, the interface's own among them


def vin(
    net: Net,
    *,
    chunk: int,
    overlap: int,
    every: int,
    num_steps: int = 50,
    fused: float = 0.6,
) -> Plan:
    """Chunks as the network was trained with; the first 0.6 of the steps join overlaps.

    ValueError for fewer than one step, a stride of frames below one, and a share
    outside [0, 1].
    """
    if num_steps < 1:
        raise ValueError(f"{num_steps=} must be at least 1")
    if every < 1:
        raise ValueError(f"{every=} must be at least 1, which reads every frame")
    if not 0 <= fused <= 1:
        raise ValueError(f"{fused=} is a share of the steps: it lies in [0, 1]")
    return Plan(net, num_steps, chunk, overlap, every, round(fused * num_steps))


def draw(plan: Plan, params: Params, keys: Array, first: Array, given: Array) -> Drawn:
    """The film that goes on from frames `first` [B, G, N, D].

    `given` int32 [B, T, 2] says what each frame is asked for; keys [B] are of rows.
    ValueError where no frame is left to draw, or chunks do not cut the film.
    """
    batch, num_given = first.shape[:2]
    count = given.shape[1]
    if num_given >= count:
        raise ValueError(
            f"{num_given} frames are there already of the {count} asked for"
        )
    begin = interfaces.starts(count, plan.chunk, plan.overlap)
    is_new = jnp.arange(count) >= num_given
    film = noise_of(plan, keys, count).at[:, :num_given].set(first)

    def turn(step, film: Array) -> Array:
        level = 1 - jnp.asarray(step, jnp.float32) / plan.num_steps
        time = jnp.broadcast_to(jnp.where(is_new, level, 0.0), (batch, count))
        velocity = interfaces.of_chunks(
            plan.net, params, film, time, jnp.broadcast_to(is_new, time.shape), given,
            jnp.asarray(begin), plan.chunk, plan.every,
        )  # fmt: skip
        whole = joined(plan, velocity, count, step < plan.num_fused)
        moved = film - whole / plan.num_steps
        return jnp.where(is_new[None, :, None, None], moved, film)

    film = jax.lax.fori_loop(0, plan.num_steps, turn, film)
    frames = len(range(0, count, plan.every)) + 1 + interfaces.NUM_SELF
    frames += len(begin) * (1 + plan.chunk)
    lanes = plan.num_steps * frames * plan.net.num_patches
    ones = jnp.ones(batch, jnp.int32)
    return Drawn(film, 2 * plan.num_steps * ones, lanes * ones)


def joined(plan: Plan, velocity: Array, num_frames: int, is_fused) -> Array:
    """[B, T, N, D]: what chunks [B, K, C, N, D] say of every frame, weighed."""
    linear, hard = (
        jnp.asarray(interfaces.weights(num_frames, plan.chunk, plan.overlap, kind))
        for kind in (True, False)
    )
    share = jnp.where(is_fused, linear, hard)
    begin = interfaces.starts(num_frames, plan.chunk, plan.overlap)
    place = jnp.asarray(begin[:, None]) + jnp.arange(plan.chunk)[None]
    whole = jnp.zeros((len(velocity), num_frames, *velocity.shape[3:]))
    return whole.at[:, place].add(velocity * share[None, :, :, None, None])


def noise_of(plan: Plan, keys: Array, num_frames: int) -> Array:
    """The noise [B, T, N, D] that a film begins as, named by row and frame."""
    places = jnp.broadcast_to(jnp.arange(num_frames), (len(keys), num_frames))
    shape = (plan.net.num_patches, plan.net.depth)
    each = rng.noise(keys, rng.TARGET, places)
    return jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32)))(
        each
    )
