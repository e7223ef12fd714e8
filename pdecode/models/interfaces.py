"""Video interfaces: chunks of a film denoised side by side, and what joins them.

Video Interface Networks: Dedhia et al., 2025, arXiv:2503.17539. A few learned tokens,
the interface, read every `every`-th frame of the whole noised film once, by
cross-attention, and make of it what the film is to be, in layers of their own. Then
each chunk of frames is denoised by the same network (`models.denoiser`), which sees the
frames of its chunk and the interface, and no other chunk. Deviations: the interface has
as many tokens as a frame has squares; a chunk sees the frames that it shares with the
one before as they are in the noised film, and no further ones of that chunk.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params, Visibility
from pdecode.models import denoiser
from pdecode.models import layers as parts
from pdecode.models.denoiser import Call, Net

NUM_SELF = 2  # layers of the interface's own, behind the one that reads the film


def init(net: Net, key: Array) -> Params:
    """A denoiser's parameters, and "interface"; `key` is consumed."""
    first, spots, *keys = jax.random.split(key, 3 + NUM_SELF)
    params = denoiser.init(net, first)
    shape = (net.num_patches, net.config.width)
    made = {"positions": 0.5 * jax.random.normal(spots, shape, jnp.float32)}
    for number, each in enumerate(keys):
        # One layer of a denoiser, whose turns begin at zero.
        made[f"layer_{number}"] = denoiser.init(net, each)["layer_0"]
    return {**params, "interface": made}


def starts(num_frames: int, chunk: int, overlap: int) -> np.ndarray:
    """Where chunks begin, int [K]: each `overlap` frames before the last one's end.

    ValueError where they do not end with the film.
    """
    step = chunk - overlap
    is_right = 0 <= 2 * overlap <= chunk <= num_frames and chunk > 0
    if not is_right or (num_frames - chunk) % step:
        raise ValueError(
            f"{chunk=} with {overlap=} does not cut {num_frames} frames: an overlap is "
            "half a chunk at most, and chunk - overlap divides what is behind the first"
        )
    return np.arange(0, num_frames - chunk + 1, step)


def weights(num_frames: int, chunk: int, overlap: int, is_linear: bool) -> np.ndarray:
    """float32 [K, C]: each chunk's share of its frames' velocity; shares sum to one.

    Linear along an overlap, or all of it the earlier chunk's.
    """
    first = starts(num_frames, chunk, overlap)
    own = np.ones((len(first), chunk), np.float32)
    ramp = (np.arange(overlap) + 1) / (overlap + 1) if is_linear else np.zeros(overlap)
    own[1:, :overlap] = ramp
    if is_linear and overlap:
        own[:-1, chunk - overlap :] = 1 - ramp
    return own


def interface(
    net: Net, params: Params, film: Array, time: Array, given: Array, every: int
) -> Array:
    """The interface [B, 1, N, E] of a noised film [B, T, N, D].

    `time` [B, T] is each frame's noise level, `given` [B, T, 2] what it is asked for.
    """
    config, own = net.config, params["interface"]
    read = denoiser.opened(net, params, film[:, ::every])
    batch, count, num, _ = read.shape
    tokens = own["positions"].astype(config.dtype)[None, None]
    tokens = jnp.broadcast_to(tokens, (batch, 1, num, config.width))
    # Of the film's last frame the level, as it is noised if any frame is; of the first
    # what it is asked for.
    level = denoiser.level_of(net, params, time[:, ::every], given[:, ::every])
    last = denoiser.level_of(net, params, time[:, -1:], given[:, :1])
    index = jnp.broadcast_to(jnp.arange(count) * every, (batch, count))
    stream = jnp.concatenate([tokens, read], 1)
    both = jnp.concatenate([last, level], 1)
    # The tokens see the frames alone; what frames see is of no use.
    seen = jnp.arange(count + 1) > 0
    among = jnp.broadcast_to(seen[None, None], (batch, count + 1, count + 1))
    index = jnp.pad(index, ((0, 0), (1, 0)))
    tokens = _layer(net, own["layer_0"], stream, both, index, among)[:, :1]
    itself = jnp.ones((batch, 1, 1), bool)
    for number in range(1, 1 + NUM_SELF):
        layer = own[f"layer_{number}"]
        tokens = _layer(net, layer, tokens, last, index[:, :1], itself)
    return tokens


def _layer(net: Net, params: Params, stream, level, index, among) -> Array:
    num = stream.shape[2]
    positions = jnp.repeat(index, num, axis=1)
    spread = jnp.repeat(jnp.repeat(among, num, 1), num, 2)
    zero = jnp.zeros_like(positions)
    return parts.applied(
        denoiser.Block(net.config), params, stream, level, jnp.ones(index.shape, bool),
        denoiser.angles_of(net.config, positions), Visibility(zero, zero, among=spread),
        None, None,
    )[0]  # fmt: skip


def of_chunks(
    net: Net,
    params: Params,
    film: Array,
    time: Array,
    is_noised: Array,
    given: Array,
    first: Array,
    chunk: int,
    every: int,
) -> Array:
    """Velocities float32 [B, K, C, N, D] of chunks that begin at `first` int [K].

    Of a film [B, T, N, D]; `time` and `is_noised` [B, T], `given` [B, T, 2].
    """
    context = interface(net, params, film, time, given, every)
    batch, count = len(film), len(first)
    place = first[:, None] + jnp.arange(chunk)[None]

    def cut(leaf: Array) -> Array:
        """[B K, 1 + C, ...]: the interface's place, and the chunk."""
        found = leaf[:, place].reshape(batch * count, chunk, *leaf.shape[2:])
        return jnp.pad(found, ((0, 0), (1, 0)) + ((0, 0),) * (found.ndim - 2))

    index = jnp.broadcast_to(jnp.arange(film.shape[1]), time.shape)
    # The interface sees itself, a frame all of its chunk and the interface.
    is_frame = jnp.arange(1 + chunk) > 0
    among = is_frame[:, None] | ~is_frame[None, :]
    call = Call(
        values=cut(film),
        time=cut(time),
        is_noised=cut(is_noised),
        given=cut(given),
        index=cut(index),
        among=jnp.broadcast_to(among, (batch * count, *among.shape)),
        context=jnp.repeat(context, count, 0),
    )
    velocity, _ = denoiser.apply(net, params, call)
    return velocity[:, 1:].reshape(batch, count, chunk, *film.shape[2:])
