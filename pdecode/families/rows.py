"""Where a row ends."""

import jax.numpy as jnp
from jax import Array


def is_eos(tokens: Array, eos_ids: tuple[int, ...]) -> Array:
    """bool, of the shape of `tokens`."""
    found = jnp.zeros(tokens.shape, bool)
    for token in eos_ids:
        found |= tokens == token
    return found


def first(
    tokens: Array,
    committed: Array,
    prompt_end: Array,
    end: Array,
    eos_ids: tuple[int, ...],
) -> tuple[Array, Array]:
    """Position [B] of the first EOS that ends a row (else `end`), and if there is one.

    Only committed tokens (bool [B, L]) in [prompt_end, end) count: an EOS in the prompt
    or in one of its holes ends nothing.
    """
    place = jnp.arange(tokens.shape[1])[None]
    ends = is_eos(tokens, eos_ids) & committed
    ends &= (place >= prompt_end[:, None]) & (place < end[:, None])
    found = ends.any(1)
    return jnp.where(found, jnp.argmax(ends, 1).astype(jnp.int32), end), found
