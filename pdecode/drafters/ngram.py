"""Drafts copied from the context: what followed the last n tokens before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, Prefix
from pdecode.drafters import ignore
from pdecode.sampling import largest

__all__ = [
    "Suffixes",
    "caught_up",
    "chain",
    "from_input",
    "input_copy",
    "located",
    "lookup",
    "prompt_lookup",
    "suffix_match",
]


class Suffixes(NamedTuple):
    """How well each place of a text agrees with its end.

    agreed[b, i] is the length of the longest common suffix of the first i tokens and of
    all `length` of them, for i < length.
    """

    agreed: Array  # int32 [B, L]
    length: Array  # int32 [B]
    matched: Array  # int32 [B]  tokens that the last draft's match agrees on


def prompt_lookup(num_draft: int, max_ngram: int, *, is_whole: bool = False) -> Drafter:
    """Drafter of up to `num_draft` tokens after the leftmost match of the suffix.

    Tries suffixes of `max_ngram` tokens, then shorter ones; the draft ends where the
    committed text does. With `is_whole` a match counts only if `num_draft` tokens
    follow it. Stateless: O(max_ngram * L) a round.
    """

    def init(params, keys, prompt, prefix, output):
        del params, keys, prompt, prefix, output
        return ()

    def propose(params, keys, state, prefix: Prefix):
        del params, keys
        tokens = jax.vmap(lambda t, n: lookup(t, n, num_draft, max_ngram, is_whole))(
            prefix.tokens, prefix.length
        )
        return chain(tokens), state

    return Drafter(num_draft, num_draft, init, propose, ignore)


def suffix_match(num_draft: int) -> Drafter:
    """Drafter of what followed the longest (leftmost) earlier copy of the text's end.

    What a suffix automaton finds, kept as one vector a row: O(L) a committed token.
    `Suffixes.matched` is how long the copy is.
    """

    def init(params, keys, prompt, prefix: Prefix, output):
        del params, keys, prompt, output
        none = jnp.zeros_like(prefix.length)
        return Suffixes(jnp.zeros_like(prefix.tokens), none, none)

    def propose(params, keys, state: Suffixes, prefix: Prefix):
        del params, keys
        state = caught_up(state, prefix)
        matched, source = largest(state.agreed)
        source = source[:, None] + jnp.arange(num_draft, dtype=jnp.int32)[None]
        is_text = (matched > 0)[:, None] & (source < prefix.length[:, None])
        last = jnp.minimum(source, prefix.tokens.shape[1] - 1)
        tokens = jnp.take_along_axis(prefix.tokens, last, 1)
        draft = chain(jnp.where(is_text, tokens, -1))
        return draft, state._replace(matched=matched)

    return Drafter(num_draft, num_draft, init, propose, ignore)


def caught_up(state: Suffixes, prefix: Prefix) -> Suffixes:
    """`state` after the tokens committed since."""
    place = jnp.arange(prefix.tokens.shape[1], dtype=jnp.int32)[None]
    before = jnp.pad(prefix.tokens, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]

    def is_behind(state: Suffixes):
        return (state.length < prefix.length).any()

    def append(state: Suffixes):
        # A copy that ends with the new token is one longer than it was without it.
        token = jnp.take_along_axis(prefix.tokens, state.length[:, None], 1)
        longer = jnp.pad(state.agreed, ((0, 0), (1, 0)))[:, :-1] + 1
        agrees = (before == token) & (place <= state.length[:, None])
        due = state.length < prefix.length
        return state._replace(
            agreed=jnp.where(due[:, None], agrees * longer, state.agreed),
            length=state.length + due,
        )

    return jax.lax.while_loop(is_behind, append, state)


def chain(tokens: Array) -> Draft:
    """Tokens int32 [B, N] as a chain behind the root; -1 ends it."""
    above = jnp.arange(-1, tokens.shape[1] - 1, dtype=jnp.int32)
    return Draft(tokens=tokens, parents=jnp.broadcast_to(above, tokens.shape))


def lookup(
    tokens: Array, length: Array, num_draft: int, max_ngram: int, is_whole: bool = False
) -> Array:
    """The tokens of `located`."""
    return located(tokens, length, num_draft, max_ngram, is_whole)[0]


def located(
    tokens: Array, length: Array, num_draft: int, max_ngram: int, is_whole: bool = False
) -> tuple[Array, Array]:
    """Tokens and their places int32 [num_draft] behind a row's leftmost match; -1 pads.

    `tokens` [L], of which `length` are text. The match must end before the suffix does,
    so that at least one token follows it; with `is_whole`, all `num_draft`.
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
    if is_whole:
        agreed = jnp.where(end + num_draft <= length, agreed, 0)
    # The longest, and of those the leftmost: one integer maximum, which vectorises.
    bits = size.bit_length()
    best = jnp.max((agreed << bits) + (size - 1 - end))
    found, after = best >> bits > 0, size - 1 - (best & ((1 << bits) - 1))
    source = after + jnp.arange(num_draft)
    is_text = found & (source < length)
    follow = jnp.where(is_text, tokens[jnp.minimum(source, tokens.shape[0] - 1)], -1)
    return follow, source


def input_copy(num_draft: int, max_ngram: int) -> Drafter:
    """Drafter of what follows in the prompt the one place that the output is at.

    That is the prompt's beginning before anything is generated; then what follows the
    shortest end of the output, of up to `max_ngram` tokens, that stands in the prompt
    exactly once. An end that stands there nowhere, or several times, drafts nothing.
    """

    def init(params, keys, prompt, prefix, output):
        del params, keys, prompt, prefix, output
        return ()

    def propose(params, keys, state, prefix: Prefix):
        del params, keys
        tokens = jax.vmap(
            lambda t, n, end: from_input(t, n, end, num_draft, max_ngram)
        )(prefix.tokens, prefix.length, prefix.prompt_end)
        return chain(tokens), state

    return Drafter(num_draft, num_draft, init, propose, ignore)


def from_input(
    tokens: Array, length: Array, prompt_end: Array, num_draft: int, max_ngram: int
) -> Array:
    """The tokens int32 [num_draft] of `input_copy`; -1 pads. One row, tokens [L]."""
    # prompt a b c b, output x b c: "c" stands there once, so b follows
    size = tokens.shape[0]
    end = jnp.arange(size + 1, dtype=jnp.int32)  # of a copy, one past its last token
    is_run = end <= prompt_end
    place = jnp.zeros((), jnp.int32)
    is_known = length == prompt_end
    is_open = ~is_known
    for nth in range(max_ngram):
        last = tokens[jnp.maximum(length - 1 - nth, 0)]
        before = jnp.pad(tokens, (nth + 1, 0), constant_values=-1)[: size + 1]
        is_run &= before == last
        count = is_run.sum()
        is_open &= (length - prompt_end > nth) & (count > 0)
        is_here = is_open & (count == 1)
        place = jnp.where(is_here, jnp.argmax(is_run).astype(jnp.int32), place)
        is_known |= is_here
        is_open &= ~is_here
    source = place + jnp.arange(num_draft, dtype=jnp.int32)
    is_text = is_known & (source < prompt_end)
    return jnp.where(is_text, tokens[jnp.minimum(source, size - 1)], -1)
