"""Draft-and-verify that stops early and keeps what was drafted last, unverified."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import STOPPED_BY, Decoder, Model
from pdecode.families import speculative


class CutState(NamedTuple):
    """A draft-and-verify decode, and how long it went on."""

    inner: speculative.PrefixState
    num_calls: Array  # int32 [B]
    was_cut: Array  # bool [B]  left with positions open


def cut_short(
    model: Model,
    base: Decoder,
    max_calls: int,
    guesses: Callable[[Any], tuple[Array, Array, Array]],
) -> Decoder:
    """`base`, a `draft_verify`, whose rows end after `max_calls` calls at the latest.

    A row that ends so keeps its drafter's `guesses(state)` behind what is committed: a
    chain of tokens int32 [B, N], their raw log-probabilities [B, N], and how many of
    them count int32 [B]. Rows with positions open then were stopped by max_steps.
    """

    def init(params, keys, prompt):
        inner, info = base.init(params, keys, prompt)
        none = jnp.zeros_like(prompt.lengths)
        return CutState(inner, none, none > 0), info

    def step(params, keys, state: CutState):
        active = ~base.done(state.inner)
        inner, info = base.step(params, keys, state.inner)
        num_calls = state.num_calls + active
        leaves = active & ~base.done(inner) & (num_calls >= max_calls)
        kept = _kept(model, inner.prefix, *guesses(inner.drafter), leaves)
        tokens, log_probs = speculative.append(inner.prefix, inner.log_probs, kept)
        length = inner.prefix.length + kept.count
        is_open = leaves & ~kept.saw_eos & (length < inner.prefix.end)
        # The row is full where it stands, so nothing moves it any more.
        end = jnp.where(leaves, length, inner.prefix.end)
        inner = inner._replace(
            prefix=inner.prefix._replace(tokens=tokens, length=length, end=end),
            log_probs=log_probs,
            saw_eos=inner.saw_eos | kept.saw_eos,
        )
        info = info._replace(num_committed=info.num_committed + kept.count)
        return CutState(inner, num_calls, state.was_cut | is_open), info

    def output(state: CutState):
        found = base.output(state.inner)
        cut = STOPPED_BY.index("max_steps")
        return found._replace(
            stopped_by=jnp.where(state.was_cut, cut, found.stopped_by)
        )

    return Decoder(
        init=init,
        step=step,
        done=lambda state: base.done(state.inner),
        output=output,
        max_steps=min(base.max_steps, max_calls),
        guarantee="lossy",
    )


def _kept(model: Model, prefix, tokens, log_probs, count, leaves):
    """The guesses that a leaving row keeps: up to its end and its first EOS."""
    room = jnp.minimum(count, prefix.end - prefix.length)
    is_number = jnp.ones(tokens.shape, bool)  # a guess may have no law to look at
    log_probs = log_probs.astype(jnp.float32)
    return speculative.cut(model.eos_ids, tokens, log_probs, is_number, room, leaves)
