"""Small networks over the confidences of a block: which of its positions are ready.

After Learn2PD (Bao et al., 2025, arXiv:2509.25188): two dense layers of the block's own
width, 2112 numbers for a block of 32. The published description names no nonlinearity
between them; this one is a ReLU.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Filter, Params


def init(block_length: int, key: Array) -> Params:
    """Float32 parameters at random; trained, they are worth something."""
    keys = jax.random.split(key)
    scale = block_length**-0.5
    shape = (block_length, block_length)
    return {
        f"dense_{n}": {
            "kernel": scale * jax.random.normal(each, shape, jnp.float32),
            "bias": jnp.zeros(block_length, jnp.float32),
        }
        for n, each in enumerate(keys)
    }


def _apply(params: Params, confidence: Array) -> Array:
    first, second = params["dense_0"], params["dense_1"]
    inner = jax.nn.relu(confidence @ first["kernel"] + first["bias"])
    return inner @ second["kernel"] + second["bias"]


@functools.cache
def make_filter(block_length: int) -> Filter:
    """The record for blocks of that length; equal lengths give the same object."""
    if block_length < 1:
        raise ValueError(f"block_length={block_length} must be at least 1")
    return Filter(block_length, _apply)
