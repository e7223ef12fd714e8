"""Medusa's heads: residual blocks on a frozen target's state, each with a head.

Cai et al., 2024, arXiv:2401.10774. At the hidden state that predicts position t + 1,
head k (index k - 1) is x + silu(A x + b) once or more, then logits for position
t + 1 + k by a matrix of its own. A matrix is "head" [V, E], or "change"/"head", what it
has more than the target's, which begins as zero; so do A and b, so that every head
begins as the target's own prediction.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import DraftHeads, Head, Params


def init(num_heads: int, num_blocks: int, width: int, vocab_size: int) -> Params:
    """Float32 zeros: every head is the target's own."""

    def head() -> dict:
        blocks: dict = {
            f"block_{block}": {
                "kernel": jnp.zeros((width, width), jnp.float32),
                "bias": jnp.zeros(width, jnp.float32),
            }
            for block in range(num_blocks)
        }
        change = {"head": jnp.zeros((vocab_size, width), jnp.float32)}
        return {**blocks, "change": change}

    return {f"head_{index}": head() for index in range(num_heads)}


@functools.cache
def make_heads(num_heads: int, num_blocks: int = 1) -> DraftHeads:
    """The record of Medusa's heads; equal numbers give the same object."""
    if num_heads < 1 or num_blocks < 1:
        raise ValueError(f"{num_heads=} and {num_blocks=} must be at least 1")
    return DraftHeads(
        num_heads,
        functools.partial(_apply, num_heads, num_blocks),
        "medusa heads",
        functools.partial(_own_heads, num_heads),
    )


def _apply(num_heads: int, num_blocks: int, params: Params, hidden: Array) -> Array:
    found = []
    for head in range(num_heads):
        value = hidden
        for block in range(num_blocks):
            own = params[f"head_{head}"][f"block_{block}"]
            bias = own["bias"].reshape((1,) * (hidden.ndim - 1) + (-1,))
            value = value + jax.nn.silu(value @ own["kernel"] + bias)
        found.append(value)
    return jnp.stack(found, -2).astype(hidden.dtype)


def _own_heads(num_heads: int, params: Params, its: Head) -> tuple[Head, ...]:
    return tuple(own_head(params[f"head_{head}"], its) for head in range(num_heads))


def own_head(params: Params, its: Head) -> Head:
    """The head in `params`: whole, or as a change of the target's."""
    if "head" in params:
        return Head(params["head"], params.get("head_bias"))
    change = params["change"]["head"].astype(its.weight.dtype)
    return its._replace(weight=its.weight + change)
