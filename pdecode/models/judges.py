"""A judge of what was written: one linear layer on a target's hidden states.

Judge decoding (Bachmann et al., 2025, arXiv:2501.19309): a number a channel of the
target, which says whether the token just read is right.
"""

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Judge, Params


def init(width: int) -> Params:
    """Float32 zeros: it likes every token as much as not, until it is trained."""
    return {
        "kernel": jnp.zeros((width, 1), jnp.float32),
        "bias": jnp.zeros(1, jnp.float32),
    }


def _apply(params: Params, hidden: Array) -> Array:
    return (hidden.astype(jnp.float32) @ params["kernel"] + params["bias"][None])[:, 0]


LINEAR = Judge(_apply, "linear judge")
