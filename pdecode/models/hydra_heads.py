"""Hydra's heads: each sees the tokens that were drafted before its own.

Ankner et al., 2024, arXiv:2402.05109. Head i (index from zero) reads a frozen target's
state, the embedding of the token that it predicted and of the i drafted behind it, side
by side: R x + silu(W x + b), then logits by a matrix of its own, as Medusa's. W and b
begin as zero, the matrix as the target's and R as what passes the state on, so that
every head begins as the target's own prediction (released: R is random).

Hydra++'s have more blocks behind the first, x + silu(V x + c), and before all heads a
causal layer over the target's states ("past"), whose state they read in its place. Both
begin as no change.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache, ChainedHeads, Head, Params, Query
from pdecode.models import draft_layers, medusa_heads, transformer
from pdecode.models.config import Config


def init(
    config: Config, num_heads: int, num_layers: int = 1, prefix_key: Array | None = None
) -> Params:
    """Float32 parameters of heads for a target of `config`, `num_layers` blocks each.

    With `prefix_key` those of the layer before them too.
    """
    width = config.width
    block = {
        "kernel": jnp.zeros((width, width), jnp.float32),
        "bias": jnp.zeros(width, jnp.float32),
    }

    def head(index: int) -> dict:
        joined = (index + 2) * width
        return {
            "residual": {"kernel": jnp.eye(joined, width, dtype=jnp.float32)},
            "inner": {
                "kernel": jnp.zeros((joined, width), jnp.float32),
                "bias": jnp.zeros(width, jnp.float32),
            },
            **{f"block_{layer}": block for layer in range(1, num_layers)},
            "change": {"head": jnp.zeros((config.vocab_size, width), jnp.float32)},
        }

    params: dict = {f"head_{index}": head(index) for index in range(num_heads)}
    if prefix_key is not None:
        own = draft_layers.own_config(config)
        params["past"] = {"layer_0": draft_layers.quiet_block(own, prefix_key)}
    return params


@functools.cache
def make_heads(
    config: Config,
    num_heads: int,
    num_layers: int = 1,
    prefix_attention: bool = False,
) -> ChainedHeads:
    """The record of heads for a target of `config`; equal ones are one object."""
    if num_heads < 1 or num_layers < 1:
        raise ValueError(f"{num_heads=} and {num_layers=} must be at least 1")
    apply = functools.partial(_apply, config, num_layers)
    if not prefix_attention:
        return ChainedHeads(num_heads, apply)
    own = draft_layers.own_config(config)
    attended = functools.partial(_attended, own)
    name = f"prefix layer of {config.name}"
    past = draft_layers.before_heads(own, attended, name)
    return ChainedHeads(num_heads, apply, "Hydra++'s heads", past)


def _attended(
    own: Config, params: Params, target: Params, query: Query, cache: Cache | None
) -> tuple[Array, Cache]:
    """States [B, Q, E] of the target's alone; which tokens they lead to is not read."""
    del target
    assert query.extra is not None, "a lane has the feature before it"
    before = None if cache is None else cache[0]
    stream = query.extra.astype(own.dtype)
    stream, after = draft_layers.through(own, params["layer_0"], stream, query, before)
    return stream, (after,)


def _apply(
    config: Config, num_layers: int, params: Params, target: Params, index: int,
    hidden: Array, tokens,
) -> tuple[Array, Head]:  # fmt: skip
    model, own = transformer.make_model(config), params[f"head_{index}"]
    read = transformer.table(config, target, tokens)
    read = read.reshape(*hidden.shape[:-1], -1).astype(hidden.dtype)
    joined = jnp.concatenate([hidden, read], -1)
    bias = own["inner"]["bias"].reshape((1,) * (hidden.ndim - 1) + (-1,))
    value = joined @ own["residual"]["kernel"]
    value = value + jax.nn.silu(joined @ own["inner"]["kernel"] + bias)
    for layer in range(1, num_layers):
        more = own[f"block_{layer}"]
        bias = more["bias"].reshape((1,) * (hidden.ndim - 1) + (-1,))
        value = value + jax.nn.silu(value @ more["kernel"] + bias)
    return value.astype(hidden.dtype), medusa_heads.own_head(own, model.head(target))
