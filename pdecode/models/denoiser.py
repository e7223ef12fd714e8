"""A denoiser of frames: clean frames of the past beside noised ones of the present.

The network of ACDiT (Hu et al., 2024, arXiv:2412.07720) and of NFD (Cheng et al., 2025,
arXiv:2506.01380): a transformer over squares of pixels, whose norms the noise level and
what a frame is asked for turn, in noised frames alone (adaLN, Peebles & Xie, 2022,
arXiv:2212.09748). What a clean frame makes depends on clean frames only, so its keys
and values can be kept. It tells the velocity of a straight flow from pixels to noise,
x_t = (1 - t) x + t noise, which is noise - x; ACDiT's own tells the noise. Deviations:
frames count by rotary positions, squares of a frame by a learned table; a turn of zero
changes nothing, and the turns begin at zero.

Values are no tokens, so this is no `Model`: `pdecode.families.frame_blocks` decodes.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Params, Visibility
from pdecode.models import layers as parts
from pdecode.models.config import Config

NUM_WAVES = 32  # cosines, and as many sines, of the noise level
_PLAIN = {
    "experts": None, "window": None, "exits": (), "taps": (), "shift": False,
    "attention_soft_cap": None,
}  # fmt: skip


class Net(NamedTuple):
    """Static facts of a denoiser; hashable."""

    config: Config
    patch: int  # pixels along the side of a square

    @property
    def depth(self) -> int:
        """Numbers of a square, D."""
        return self.patch**2

    @property
    def num_patches(self) -> int:
        """Squares of a frame, N."""
        return (self.config.block_len or 0) // self.depth


class Call(NamedTuple):
    """One call: F frames a row, all squares of which see the same."""

    values: Array  # float32 [B, F, N, D]
    time: Array  # float32 [B, F]  noise level, 0 .. 1
    is_noised: Array  # bool [B, F]  others are clean: no time turns them
    given: Array  # int32 [B, F, 2]  ids of what a noised frame is asked for
    index: Array  # int32 [B, F]  place in the film
    among: Array  # bool [B, F, F]  frame q sees frame k of this call
    # Where frames stand in the cache, counted in frames; beyond it: not stored.
    places: Array | None = None  # int32 [B, F]
    seen: Array | None = None  # bool [B, P]  places that this call sees, none it writes
    # [B, 1, N, E]  what the first frame is, in place of its values.
    context: Array | None = None


@functools.cache
def make_net(config: Config, patch: int) -> Net:
    """ValueError, naming the field, for what is no denoiser of square frames."""
    for field, value in _PLAIN.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"a denoiser needs model.{field}={value!r}, not "
                f"{getattr(config, field)!r}"
            )
    if config.rope is None:
        raise ValueError(
            "a denoiser needs model.rope, which is None: frames turn by it"
        )
    side = round((config.block_len or 0) ** 0.5)
    if config.block_len != side**2 or side % patch:
        raise ValueError(
            f"model.block_len={config.block_len} is no square frame that squares of "
            f"{patch=} pixels fill"
        )
    return Net(config, patch)


def init(net: Net, key: Array) -> Params:
    """Random float32 parameters; `key` is consumed."""
    config = net.config
    keys = jax.random.split(key, config.num_layers + 5)
    table = (config.vocab_size, config.width)
    spots = (net.num_patches, config.width)
    stream = jnp.zeros((1, 1, net.num_patches, config.width), config.dtype)
    level, flag = jnp.zeros((1, 1, config.width), config.dtype), jnp.ones((1, 1), bool)
    place = jnp.zeros((1, net.num_patches), jnp.int32)
    visible, angles = Visibility(place, place + 1), angles_of(config, place)
    params = {
        "embed": jax.random.normal(keys[0], table, jnp.float32),
        "positions": 0.5 * jax.random.normal(keys[1], spots, jnp.float32),
        "opening": parts.dense(config, config.width, True, "opening").init(
            keys[2], jnp.zeros((1, net.depth))
        )["params"],
        "level": Level(config).init(keys[3], jnp.zeros((1, 1)), level)["params"],
        "last": Last(net).init(keys[4], stream, level, flag)["params"],
    }
    for layer in range(config.num_layers):
        params[f"layer_{layer}"] = Block(config).init(
            keys[5 + layer], stream, level, flag, angles, visible, None, None
        )["params"]

    def begun(path, leaf):
        return 0 * leaf if "modulation" in str(path) else leaf

    return jax.tree_util.tree_map_with_path(begun, params)


def init_cache(net: Net, batch: int, num_frames: int) -> Cache:
    """An empty cache with room for `num_frames` frames a row."""
    config = net.config
    slots = num_frames * net.num_patches
    shape = (batch, config.num_kv_heads, slots, config.head_dim)
    return tuple(
        {"k": jnp.zeros(shape, config.dtype), "v": jnp.zeros(shape, config.dtype)}
        for _ in range(config.num_layers)
    )


def apply(
    net: Net, params: Params, call: Call, cache: Cache | None = None
) -> tuple[Array, Cache | None]:
    """The velocity float32 [B, F, N, D] at every square, and the cache.

    Of clean frames it means nothing.
    """
    config = net.config
    num = call.values.shape[2]
    stream = opened(net, params, call.values)
    if call.context is not None:
        stream = stream.at[:, :1].set(call.context)
    level = level_of(net, params, call.time, call.given)
    positions = jnp.repeat(call.index, num, axis=1)
    visible, slots = _of_lanes(call, num)
    angles = angles_of(config, positions)
    stored = [None] * config.num_layers if cache is None else list(cache)
    for layer in range(config.num_layers):
        stream, stored[layer] = parts.applied(
            Block(config), params[f"layer_{layer}"], stream, level, call.is_noised,
            angles, visible, slots, stored[layer],
        )  # fmt: skip
    out = parts.applied(Last(net), params["last"], stream, level, call.is_noised)
    return out.astype(jnp.float32), None if cache is None else tuple(stored)


def opened(net: Net, params: Params, values: Array) -> Array:
    """What the layers begin with, [B, F, N, E], of squares [B, F, N, D]."""
    spots = params["positions"].astype(net.config.dtype)
    dense = parts.dense(net.config, net.config.width, True, "opening")
    return parts.applied(dense, params["opening"], values) + spots[None, None]


def level_of(net: Net, params: Params, time: Array, given: Array) -> Array:
    """What norms are turned by, [B, F, E]."""
    asked = params["embed"].astype(net.config.dtype)[given].sum(2)
    return parts.applied(Level(net.config), params["level"], time, asked)


def _of_lanes(call: Call, num: int) -> tuple[Visibility, Array | None]:
    """What is said of frames, of each of their `num` squares."""
    among = jnp.repeat(jnp.repeat(call.among, num, 1), num, 2)
    zero = jnp.zeros(among.shape[:2], jnp.int32)
    if call.seen is None:
        return Visibility(zero, zero, among=among), None
    written = jnp.repeat(call.seen, num, axis=1)
    visible = Visibility(zero, zero + written.shape[1], written, among)
    if call.places is None:
        return visible, None
    is_stored = (call.places < call.seen.shape[1])[..., None]
    spot = jnp.where(is_stored, call.places[..., None], 0) * num
    spot = spot + jnp.arange(num)[None, None]
    slots = jnp.where(is_stored, spot, caches.UNSTORED)
    return visible, slots.reshape(zero.shape)


def angles_of(config: Config, positions: Array):
    assert config.rope is not None, "checked where the net is made"
    return parts.rotary(config.rope, config.head_dim, positions)


class Level(nn.Module):
    """What norms are turned by, [B, F, E]: of the noise level and what is asked for."""

    config: Config

    @nn.compact
    def __call__(self, time: Array, asked: Array) -> Array:
        width = self.config.width
        rates = jnp.asarray(1000.0 ** np.linspace(0, 1, NUM_WAVES), jnp.float32)
        angle = time[..., None] * rates[None, None]
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
        hidden = parts.dense(self.config, width, True, "begin")(waves)
        hidden = parts.dense(self.config, width, True, "end")(jax.nn.silu(hidden))
        return jax.nn.silu(hidden + asked)


class Block(nn.Module):
    """Attention and an MLP, each on a turned norm, each by a turned gate."""

    config: Config

    @nn.compact
    def __call__(self, x, level, is_noised, angles, visible, slots, cache):
        config = self.config
        turns = _turns(config, level, is_noised, 6)
        normed = _turned(parts.norm(config, "attention_norm")(x), *turns[:2])
        flat = normed.reshape(x.shape[0], -1, config.width)
        branch, cache = parts.Attention(config, name="attention")(
            flat, angles, visible, slots, cache
        )
        x = x + (1 + turns[2]) * branch.reshape(x.shape)
        normed = _turned(parts.norm(config, "mlp_norm")(x), *turns[3:5])
        return x + (1 + turns[5]) * parts.Mlp(config, name="mlp")(normed), cache


class Last(nn.Module):
    """From the last turned norm to the numbers of each square."""

    net: Any

    @nn.compact
    def __call__(self, x: Array, level: Array, is_noised: Array) -> Array:
        config = self.net.config
        turns = _turns(config, level, is_noised, 2)
        normed = _turned(parts.norm(config, "norm")(x), *turns)
        return parts.dense(config, self.net.depth, True, "numbers")(normed)


def _turned(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift


def _turns(config: Config, level: Array, is_noised: Array, count: int) -> list[Array]:
    """`count` shifts, scales and gates [B, F, 1, E]; zero in clean frames."""
    made = parts.dense(config, count * config.width, True, "modulation")(level)
    made = jnp.where(is_noised[..., None], made, 0)
    return jnp.split(made[:, :, None], count, axis=-1)
