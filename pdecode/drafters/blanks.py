"""A masked model as the drafter: it fills a block of blanks behind the text at once."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Draft,
    DraftCost,
    Drafter,
    Model,
    Prefix,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.drafters import ignore
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["block"]


def block(model: Model, num_draft: int) -> Drafter:
    """A chain of the best token at each of `num_draft` masks, in one call a round.

    The drafter's params are those of the role "drafter". It sees the text both ways, so
    nothing of a call serves the next one: the whole buffer is evaluated each round. No
    drafted token sees another. ValueError for a model that has no mask or does not see
    what comes later, and for an empty draft.
    """
    if model.predicts != "masked" or model.attention != "bidirectional":
        raise ValueError(
            f"blanks are filled by a masked model that sees all of a canvas, but "
            f"{model.name} has attention={model.attention!r} and "
            f"predicts={model.predicts!r}: use drafters.causal for a causal model"
        )
    if model.mask_id is None:
        raise ValueError(f"blanks are masks, but {model.name} has none")
    if num_draft < 1:
        raise ValueError(f"{num_draft=} must be at least 1")
    propose = functools.partial(_propose, model, model.mask_id, num_draft)
    return Drafter(
        num_draft, num_draft, functools.partial(_init, model), propose, ignore
    )


def _init(model: Model, params, keys, prompt, prefix: Prefix, output):
    """Room for a canvas; one slot more, so that no call is as large as the cache."""
    del params, keys, output
    return model.init_cache(prompt, caches.num_slots(prefix.tokens.shape[1] + 1))


def _propose(model: Model, mask_id: int, num_draft: int, params, keys, cache: Any,
             prefix: Prefix):  # fmt: skip
    del keys
    length = prefix.tokens.shape[1]
    place = jnp.arange(length, dtype=jnp.int32)[None]
    stop = jnp.minimum(prefix.length + num_draft, prefix.end)[:, None]
    positions = jnp.broadcast_to(place, prefix.tokens.shape)
    query = Query(
        tokens=jnp.where(place < prefix.length[:, None], prefix.tokens, mask_id),
        positions=positions,
        slots=SlotRun(jnp.zeros_like(prefix.length)),
        visible=Visibility(
            jnp.zeros_like(positions), jnp.broadcast_to(stop, positions.shape)
        ),
    )
    output, cache = model.apply(params["drafter"], query, cache)
    blank = prefix.length[:, None] + jnp.arange(num_draft, dtype=jnp.int32)[None]
    hidden = _at(output.hidden, jnp.minimum(blank, length - 1))
    head = model.head(params["drafter"])
    law = without_mask(model, Sampling())
    token = vocab_head.statistics(head, hidden, ("token",), law).token
    parents = jnp.arange(-1, num_draft - 1, dtype=jnp.int32)[None]
    draft = Draft(
        tokens=jnp.where(blank < stop, token, -1),
        parents=jnp.broadcast_to(parents, token.shape),
        cost=DraftCost(
            num_calls=jnp.full_like(prefix.length, model.num_calls),
            num_tokens=stop[:, 0] * model.num_calls,
            num_tokens_computed=jnp.full_like(prefix.length, length * model.num_calls),
        ),
    )
    return draft, cache


def _at(hidden: Array, lanes: Array) -> Array:
    return jnp.take_along_axis(hidden, lanes[..., None], 1)
