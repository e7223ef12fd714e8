"""Drafters: one file a kind. A drafter proposes; it never decides."""

import jax.numpy as jnp

from pdecode.contracts import Draft, Drafter, Params, Prefix


def nothing() -> Drafter:
    """No draft at all: one token a call, which is autoregressive decoding."""

    def init(params: Params, keys, prompt, prefix, output):
        del params, keys, prompt, prefix, output
        return ()

    def propose(params: Params, keys, state, prefix: Prefix):
        del params, keys
        blank = jnp.zeros((prefix.length.shape[0], 0), jnp.int32)
        return Draft(tokens=blank, parents=blank), state

    return Drafter(0, 0, init, propose, ignore)


def ignore(params, keys, state, round):
    """The `observe` of a drafter that reads everything off the prefix."""
    del params, keys, round
    return state
