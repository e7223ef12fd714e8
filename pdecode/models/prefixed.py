"""A context in front of the text: features that stand at a prompt's first positions.

What an image encoder or a retriever gives is read as LaViDa (Li et al., 2025,
arXiv:2505.16839) and Dimple (Yu et al., 2025, arXiv:2505.16990) read it: as embeddings
in place of tokens. The wrapped model is an ordinary Model, so every family decodes it.
"""

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache, Model, Prompt, Query, SlotRun


def prefixed(model: Model, num_features: int) -> Model:
    """`model` that reads `prompt.context` [B, C, E] at positions 0 .. C - 1.

    A row's prompt begins with C placeholder tokens of any id (0 is usual); the model
    must add `Query.extra` to its embedding, as a transformer does: the placeholder's
    own embedding is part of the sum. Features are added wherever such a position is
    evaluated, so windows and refreshes see them too. Raises ValueError for another C
    or a prompt without context.
    """

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        if prompt.context is None or prompt.context.shape[1] != num_features:
            found = None if prompt.context is None else prompt.context.shape
            raise ValueError(
                f"{model.name} reads {num_features} features a row, but the prompt's "
                f"context is {found}: give [B, {num_features}, E]"
            )
        features = prompt.context[:, None]  # [B, 1, C, E], as a cache leaf
        return {"model": model.init_cache(prompt, num_slots), "features": features}

    def reading(call):
        def apply(params, query: Query, cache: Cache):
            features = cache["features"][:, 0]
            place = jnp.clip(query.positions, 0, num_features - 1)
            here = query.positions < num_features
            extra = jnp.take_along_axis(features, place[..., None], 1)
            extra = jnp.where(here[..., None], extra, 0)
            if query.extra is not None:
                given = query.extra
                if query.has_extra is not None:
                    given = jnp.where(query.has_extra[..., None], given, 0)
                extra = extra + given
                here = here | (True if query.has_extra is None else query.has_extra)
            query = query._replace(extra=extra, has_extra=here)
            output, inner = call(params, query, cache["model"])
            return output, {**cache, "model": inner}

        return apply

    def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
        return {**cache, "model": model.move(cache["model"], source, target)}

    return model._replace(
        init_cache=init_cache,
        apply=reading(model.apply),
        encode=reading(model.encode),
        move=move,
        name=f"prefixed {model.name}",
    )
