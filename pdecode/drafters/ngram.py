"""Drafts copied from the context: what followed the last n tokens before."""

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, Prefix
from pdecode.drafters import ignore


def prompt_lookup(num_draft: int, max_ngram: int) -> Drafter:
    """Drafter of up to `num_draft` tokens after the leftmost match of the suffix.

    Tries suffixes of `max_ngram` tokens, then shorter ones; the draft ends where the
    committed text does. Stateless: O(max_ngram * L) a round.
    """

    def init(params, keys, prompt, prefix, output):
        del params, keys, prompt, prefix, output
        return ()

    def propose(params, keys, state, prefix: Prefix):
        del params, keys
        tokens = jax.vmap(lambda t, n: lookup(t, n, num_draft, max_ngram))(
            prefix.tokens, prefix.length
        )
        parents = jnp.broadcast_to(jnp.arange(-1, num_draft - 1), tokens.shape)
        return Draft(tokens=tokens, parents=parents), state

    return Drafter(num_draft, num_draft, init, propose, ignore)


def lookup(tokens: Array, length: Array, num_draft: int, max_ngram: int) -> Array:
    """Tokens int32 [num_draft] that followed the leftmost match in one row; -1 pads.

    `tokens` [L], of which `length` are text. The match must end before the suffix does,
    so that at least one token follows it.
    """
    # suffix a b, text  a b c a b : what ends at 2 agrees on two tokens, c follows.
    size = tokens.shape[0]
    end = jnp.arange(size)
    agreed = jnp.zeros(size, jnp.int32)
    is_run = end < length
    padded = jnp.pad(tokens, (max_ngram, 0), constant_values=-2)

    def longer(i, found):
        is_run, agreed = found
        last = jnp.where(length > i, tokens[jnp.maximum(length - 1 - i, 0)], -1)
        shifted = jax.lax.dynamic_slice_in_dim(padded, max_ngram - 1 - i, size)
        is_run &= shifted == last
        return is_run, agreed + is_run

    # A loop, partly unrolled: a long suffix costs time, and no longer program.
    _, agreed = jax.lax.fori_loop(
        0, max_ngram, longer, (is_run, agreed), unroll=min(max_ngram, 8)
    )
    # The longest, and of those the leftmost: one integer maximum, which vectorises.
    bits = size.bit_length()
    best = jnp.max((agreed << bits) + (size - 1 - end))
    found, after = best >> bits > 0, size - 1 - (best & ((1 << bits) - 1))
    source = after + jnp.arange(num_draft)
    is_text = found & (source < length)
    return jnp.where(is_text, tokens[jnp.minimum(source, tokens.shape[0] - 1)], -1)
