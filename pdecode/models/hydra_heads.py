"""Hydra's heads: each sees the tokens that were drafted before its own.

Ankner et al., 2024, arXiv:2402.05109. Head i (index from zero) reads a frozen target's
state, the embedding of the token that it predicted and of the i drafted behind it, side
by side: R x + silu(W x + b), then logits by a matrix of its own, as Medusa's. W and b
begin as zero, the matrix as the target's and R as what passes the state on, so that
every head begins as the target's own prediction (released: R is random).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import ChainedHeads, Head, Params
from pdecode.models import medusa_heads, transformer
from pdecode.models.config import Config


def init(config: Config, num_heads: int) -> Params:
    """Float32 parameters of heads for a target of `config`."""
    width = config.width

    def head(index: int) -> dict:
        joined = (index + 2) * width
        return {
            "residual": {"kernel": jnp.eye(joined, width, dtype=jnp.float32)},
            "inner": {
                "kernel": jnp.zeros((joined, width), jnp.float32),
                "bias": jnp.zeros(width, jnp.float32),
            },
            "change": {"head": jnp.zeros((config.vocab_size, width), jnp.float32)},
        }

    return {f"head_{index}": head(index) for index in range(num_heads)}


@functools.cache
def make_heads(config: Config, num_heads: int) -> ChainedHeads:
    """The record of heads for a target of `config`; equal ones are one object."""
    if num_heads < 1:
        raise ValueError(f"{num_heads=} must be at least 1")
    return ChainedHeads(num_heads, functools.partial(_apply, config))


def _apply(
    config: Config, params: Params, target: Params, index: int, hidden: Array, tokens
) -> tuple[Array, Head]:
    model, own = transformer.make_model(config), params[f"head_{index}"]
    read = transformer.table(config, target, tokens)
    read = read.reshape(*hidden.shape[:-1], -1).astype(hidden.dtype)
    joined = jnp.concatenate([hidden, read], -1)
    bias = own["inner"]["bias"].reshape((1,) * (hidden.ndim - 1) + (-1,))
    value = joined @ own["residual"]["kernel"]
    value = value + jax.nn.silu(joined @ own["inner"]["kernel"] + bias)
    return value.astype(hidden.dtype), medusa_heads.own_head(own, model.head(target))
