"""The diffusion transformer of MDLM and BD3-LM: layer norms that a noise level turns.

The DiT of Peebles & Xie, 2022, on text: Sahoo et al., 2024, arXiv:2406.07524 (MDLM) and
Arriola et al., 2025, arXiv:2503.09573 (BD3-LM). Their released networks are not told
the noise level: it goes in as zero, and what it turns norms and branches by follows
from the weights alone. The mask is never predicted by a method here, so that their
renormalisation without it is a ban.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    Embedding,
    Head,
    Model,
    Output,
    Params,
    Query,
    Visibility,
)
from pdecode.models import config as config_module
from pdecode.models import layers as parts
from pdecode.models import transformer

NUM_WAVES = 128  # cosines, then sines, of the noise level


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a text DiT; bidirectional without a `block_len`."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    cond_width: int | None = 128  # of the noise level; None: norms that nothing turns
    mlp_width: int = 0  # 0: 4 * width
    block_len: int | None = None
    max_positions: int | None = None
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    tied: bool = False
    dtype: str = "float32"
    name: str = "dit"

    def __post_init__(self):
        object.__setattr__(self, "mlp_width", self.mlp_width or 4 * self.width)
        _inner(self)  # which checks the sizes

    @property
    def attention(self) -> str:
        return "bidirectional" if self.block_len is None else "block_causal"


@functools.cache
def _inner(config: Config) -> config_module.Config:
    """The transformer that attention and MLP are those of."""
    return config_module.Config(
        vocab_size=config.vocab_size,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        mlp_width=config.mlp_width,
        gated=False,
        activation="gelu_tanh",
        mlp_bias=True,
        mask_id=config.mask_id,
        dtype=config.dtype,
    )


def init(config: Config, key: Array) -> Params:
    """Random float32 parameters; `key` is consumed."""
    keys = jax.random.split(key, config.num_layers + 4)
    shape = (config.vocab_size, config.width)
    stream = jnp.zeros((1, 1, config.width), config.dtype)
    place = jnp.zeros((1, 1), jnp.int32)
    params = {
        "embed": jax.random.normal(keys[0], shape, jnp.float32),
        "head": config.width**-0.5 * jax.random.normal(keys[1], shape, jnp.float32),
        "head_bias": jnp.zeros(config.vocab_size, jnp.float32),
    }
    level = None
    if config.cond_width is not None:
        params["noise_level"] = NoiseLevel(config).init(keys[2])["params"]
        level = jnp.zeros((1, config.cond_width), config.dtype)
    params["last"] = Last(config).init(keys[3], stream, level)["params"]
    visible, angles = Visibility(place, place + 1), _angles(config, place)
    for layer in range(config.num_layers):
        params[f"layer_{layer}"] = Block(config).init(
            keys[4 + layer], stream, level, angles, visible, None, None
        )["params"]
    return params


@functools.cache
def make_model(config: Config) -> Model:
    """The decoder's view of `config`; equal configurations give the same object.

    `query.extra` is added to the embedding where `query.has_extra`.
    """
    return Model(
        init_cache=transformer.make_model(_inner(config)).init_cache,
        apply=functools.partial(_apply, config),
        encode=functools.partial(_apply, config),
        head=lambda params: Head(params["head"], params["head_bias"]),
        move=caches.move,
        vocab_size=config.vocab_size,
        mask_id=config.mask_id,
        eos_ids=config.eos_ids,
        predicts="masked",
        attention=config.attention,
        block_len=config.block_len,
        max_positions=config.max_positions,
        name=config.name,
        embedding=Embedding(
            lambda params: params["embed"].astype(config.dtype),
            config.width,
            config.dtype,
        ),
    )


class NoiseLevel(nn.Module):
    """What norms and branches are turned by: an MLP of the noise level, which is 0."""

    config: Config

    @nn.compact
    def __call__(self) -> Array:
        config = self.config
        waves = jnp.repeat(jnp.array([1.0, 0.0], config.dtype), NUM_WAVES)[None]
        assert config.cond_width is not None, "without one nothing is turned"
        hidden = parts.dense(config, config.cond_width, True, "opening")(waves)
        hidden = jax.nn.silu(hidden)
        return jax.nn.silu(parts.dense(config, config.cond_width, True, "end")(hidden))


class Block(nn.Module):
    """Attention and an MLP, each on a turned norm of the stream, each scaled."""

    config: Config

    @nn.compact
    def __call__(self, x, level, angles, visible, slots, cache):
        inner = _inner(self.config)
        turns = _turns(self.config, level, 6)
        branch, cache = parts.Attention(inner, name="attention")(
            _turned(_norm("attention_norm")(x), *turns[:2]),
            angles, visible, slots, cache,
        )  # fmt: skip
        x = x + turns[2] * branch
        normed = _turned(_norm("mlp_norm")(x), *turns[3:5])
        return x + turns[5] * parts.Mlp(inner, name="mlp")(normed), cache


class Last(nn.Module):
    """The norm in front of the head."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, level: Array | None) -> Array:
        return _turned(_norm("norm")(x), *_turns(self.config, level, 2))


def _norm(name: str) -> parts.Norm:
    return parts.Norm("centered", 1e-5, name=name)


def _turned(x: Array, shift, scale) -> Array:
    return x * (1 + scale) + shift


def _turns(config: Config, level: Array | None, count: int) -> list:
    """`count` shifts, scales and gates [1, 1, E], in the order the weights have."""
    if level is None:
        return [0.0, 0.0, 1.0] * (count // 3) if count > 2 else [0.0, 0.0]
    made = parts.dense(config, count * config.width, True, "modulation")(level)
    return jnp.split(made[:, None], count, axis=-1)


def _angles(config: Config, positions: Array):
    inner = _inner(config)
    assert inner.rope is not None, "the default turns"
    return parts.rotary(inner.rope, inner.head_dim, positions)


def _apply(
    config: Config, params: Params, query: Query, cache: Cache
) -> tuple[Output, Cache]:
    stream = transformer.embedded(_inner(config), params, query)
    level = None
    if config.cond_width is not None:
        level = parts.applied(NoiseLevel(config), params["noise_level"])
    angles, cache = _angles(config, query.positions), list(cache)
    for layer in range(config.num_layers):
        stream, cache[layer] = parts.applied(
            Block(config), params[f"layer_{layer}"], stream, level, angles,
            query.visible, query.slots, cache[layer],
        )  # fmt: skip
    hidden = parts.applied(Last(config), params["last"], stream, level)
    return Output(hidden), tuple(cache)
