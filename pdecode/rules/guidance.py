"""Transforms of a model's predictions, as wrappers of the Model."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Cache, Model, Output, Prompt, Query, SlotRun

__all__ = ["Pair", "by_prompt", "guided", "hide_some", "mask_prompt"]


class Pair(NamedTuple):
    """Two caches side by side: conditional and null."""

    cond: Cache
    null: Cache
    prompt_lengths: Array  # int32 [B]


def guided(
    model: Model,
    scale: Array | float | Callable[[Query, Array], Array],
    null: Callable[[Query, Array], Query],
) -> Model:
    """Classifier-free guidance: logits = (1 + scale) * cond - scale * null.

    `null(query, prompt_lengths [B]) -> query` hides the condition; `scale` may be such
    a function too, which returns [B, Q]. The combination is
    made on hidden states, which is the same for a linear head; ValueError when the head
    has a soft cap. Each apply counts as two calls. Ho & Salimans, 2022,
    arXiv:2207.12598.
    """

    def init_cache(prompt: Prompt, num_slots: int) -> Pair:
        return Pair(
            model.init_cache(prompt, num_slots),
            model.init_cache(prompt, num_slots),
            prompt.lengths,
        )

    def both(function):
        def apply(params, query: Query, cache: Pair):
            hidden = null(query, cache.prompt_lengths)
            cond, cond_cache = function(params, query, cache.cond)
            free, null_cache = function(params, hidden, cache.null)
            if callable(scale):
                share = scale(query, cache.prompt_lengths)[..., None]
            else:
                share = scale
            mixed = (1 + share) * cond.hidden - share * free.hidden
            output = Output(mixed.astype(cond.hidden.dtype), cond.taps)
            return output, Pair(cond_cache, null_cache, cache.prompt_lengths)

        return apply

    def head(params):
        found = model.head(params)
        if found.soft_cap is not None or found.bias is not None:
            raise ValueError(
                f"guidance mixes hidden states, which needs a linear head, but "
                f"{model.name} has a bias or soft_cap={found.soft_cap}"
            )
        return found

    def move(cache: Pair, source: Array, target: Array | SlotRun) -> Pair:
        return Pair(
            model.move(cache.cond, source, target),
            model.move(cache.null, source, target),
            cache.prompt_lengths,
        )

    tells = model.observed

    return model._replace(
        observed=tells and (lambda cache: tells(cache.cond)),
        init_cache=init_cache,
        apply=both(model.apply),
        encode=both(model.encode),
        head=head,
        move=move,
        num_calls=2 * model.num_calls,
        tapped=None,
        exits=(),
        name=f"guided {model.name}",
    )


def by_prompt(
    model: Model, scale: Array | float, max_new_tokens: int, is_growing: bool = True
) -> Model:
    """logits = g * cond - (g - 1) * null, where null has masks for its prompt.

    g is `scale`, or grows to it: g = 1 + (scale - 1) * decided / max_new_tokens, and
    how much is decided is told by the tokens that a query sees.
    """
    if model.mask_id is None:
        raise ValueError(
            f"guidance hides the prompt by masks, but {model.name} has none"
        )

    def share(query: Query, prompt_lengths: Array) -> Array:
        visible, known = query.visible, query.tokens != model.mask_id
        seen = visible.stop - visible.start
        if visible.among is not None:
            seen = seen + (visible.among & known[:, None]).sum(-1, dtype=jnp.int32)
        decided = jnp.maximum(seen - prompt_lengths[:, None], 0)
        return (scale - 1) * decided / max_new_tokens

    return guided(model, share if is_growing else scale - 1, mask_prompt(model.mask_id))


def mask_prompt(mask_id: int) -> Callable[[Query, Array], Query]:
    """The null query of LLaDA: every prompt token becomes the mask."""

    def null(query: Query, prompt_lengths: Array) -> Query:
        in_prompt = query.positions < prompt_lengths[:, None]
        return query._replace(tokens=jnp.where(in_prompt, mask_id, query.tokens))

    return null


def hide_some(mask_id: int, fraction: Array | float) -> Callable[[Query, Array], Query]:
    """A poorer query: a `fraction` of its known tokens become the mask (GenMol).

    Which ones is a fixed random function of the position and of how many are known.
    """

    def null(query: Query, prompt_lengths: Array) -> Query:
        del prompt_lengths
        known = query.tokens != mask_id
        number = known.sum(1, dtype=jnp.int32)
        keys = rng.row_keys(jax.random.key(0), number)
        drawn = rng.uniform(rng.noise(keys, rng.COMMIT, query.positions))
        falling = jnp.argsort(jnp.where(known, drawn, jnp.inf), axis=1)
        count = jnp.floor(fraction * number).astype(jnp.int32)
        hidden = jnp.argsort(falling, axis=1) < count[:, None]
        return query._replace(tokens=jnp.where(hidden, mask_id, query.tokens))

    return null
