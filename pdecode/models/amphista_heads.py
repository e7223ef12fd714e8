"""Amphista's heads: they see each other, and a target's states adapted in two stages.

Li et al., 2024, arXiv:2406.13170. The first stage is a causal layer on the target's
states; the second joins its state with the embedding of the next token, the root, by
one linear map, and puts another causal layer behind. The first half of the heads reads
the first stage, the others the second. Each head makes of what it reads a drafting
embedding, x + silu(A x + b), and adds its learned place; one layer without a causal
mask lets all of them see each other, and the target's own head reads the result. All
changes begin as zero, so that every head begins as the target's own prediction.

{"past": {"first", "fc", "second"}, "head_0": {"kernel", "bias"}, ..., "positions",
"encoder"}.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import (
    Cache,
    DraftHeads,
    Params,
    Query,
    Visibility,
)
from pdecode.models import draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config


def init(config: Config, key: Array, num_heads: int) -> Params:
    """Float32 parameters of heads for a target of `config`."""
    own, width = draft_layers.own_config(config), config.width
    first, second, third = (
        draft_layers.quiet_block(own, each) for each in jax.random.split(key, 3)
    )
    head = {
        "kernel": jnp.zeros((width, width), jnp.float32),
        "bias": jnp.zeros(width, jnp.float32),
    }
    fc = {"kernel": jnp.eye(2 * width, width, dtype=jnp.float32)}
    return {
        "past": {"first": first, "fc": fc, "second": second},
        **{f"head_{index}": head for index in range(num_heads)},
        "positions": jnp.zeros((num_heads, width), jnp.float32),
        "encoder": third,
    }


@functools.cache
def make_heads(config: Config, num_heads: int) -> DraftHeads:
    """The record of heads for a target of `config`; equal ones are one object."""
    if num_heads < 1:
        raise ValueError(f"{num_heads=} must be at least 1")
    own = draft_layers.own_config(config)
    two = dataclasses.replace(own, num_layers=2, sliding=())
    staged = functools.partial(_staged, own)
    past = draft_layers.before_heads(two, staged, f"stages of {config.name}")
    apply = functools.partial(_apply, own, num_heads)
    return DraftHeads(num_heads, apply, "Amphista's heads", past=past)


def _staged(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """Both stages' states side by side, [B, Q, 2 E]."""
    assert query.extra is not None, "a lane has the feature before it"
    token = transformer.embedded(own, target, query._replace(extra=None))
    one, two = (None, None) if cache is None else cache
    first, one = draft_layers.through(
        own, params["first"], query.extra.astype(token.dtype), query, one
    )
    joined = jnp.concatenate([first, token], -1) @ params["fc"]["kernel"]
    second, two = draft_layers.through(own, params["second"], joined, query, two)
    return jnp.concatenate([first, second], -1), (one, two)


def _apply(own: Config, num_heads: int, params: Params, hidden: Array) -> Array:
    """[..., 2 E] -> [..., K, E]."""
    stages, drafting = jnp.split(hidden, 2, -1), []
    for index in range(num_heads):
        read = stages[0 if 2 * index < num_heads else 1].reshape(-1, own.width)
        head = params[f"head_{index}"]
        value = read @ head["kernel"] + head["bias"][None]
        drafting.append(read + jax.nn.silu(value) + params["positions"][index][None])
    stream = jnp.stack(drafting, 1)
    none = jnp.zeros(stream.shape[:2], jnp.int32)
    every = Visibility(none, none + num_heads)
    encoder = parts.Block(own)
    stream, _ = parts.applied(
        encoder, params["encoder"], stream, None, every, None, None
    )
    return stream.reshape(*hidden.shape[:-1], num_heads, -1).astype(hidden.dtype)
