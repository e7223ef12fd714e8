"""A transformer cut into sub-models that share its parameters and one cache.

As S2D has them (Kavehzadeh et al., 2024, arXiv:2407.01955): each ends behind a layer of
`Config.exits`, and all read the last norm and the head. The cache is {"layers": the
model's own, "held": the stream behind each sub-model but the last, leaf [B, 1, S, E]}:
what a lane was when a sub-model left it, where the next one goes on.
"""

import dataclasses
import functools

from jax import Array
from jax import numpy as jnp

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Output, Prompt, Query
from pdecode.models import transformer
from pdecode.models.config import Config

__all__ = ["sub_models"]


def sub_models(config: Config) -> tuple[Model, ...]:
    """Models that end at `config.exits`, see `Model.exits`.

    A lane of a later one stands at slot == position, where the one before it was
    called, and its token is not read. Without exits there are none.
    """
    if not config.exits:
        return ()
    whole = transformer.make_model(dataclasses.replace(config, exits=()))
    found = []
    for nth, stop in enumerate(config.exits):
        apply = functools.partial(_apply, config, nth)
        found.append(
            whole._replace(
                init_cache=functools.partial(_init_cache, config, whole),
                apply=apply,
                encode=apply,
                taps=(),
                name=f"{config.name} to layer {stop}",
            )
        )
    return tuple(found)


def _init_cache(config: Config, whole: Model, prompt: Prompt, num_slots: int) -> Cache:
    shape = (prompt.tokens.shape[0], 1, num_slots, config.width)
    held = (jnp.zeros(shape, config.dtype),) * (len(config.exits) - 1)
    return {"layers": whole.init_cache(prompt, num_slots), "held": held}


def _apply(config: Config, nth: int, params, query: Query, cache: Cache):
    layers, held = list(cache["layers"]), list(cache["held"])
    if nth == 0:
        stream = transformer.embedded(config, params, query)
    else:
        stream = _read(held[nth - 1], query.positions)
    for layer in range(config.exits[nth - 1] if nth else 0, config.exits[nth]):
        block = params[f"layer_{layer}"]
        stream, layers[layer] = transformer.one_layer(
            config, layer, block, query, stream, layers[layer]
        )
    if nth < len(held):
        held[nth] = caches.write(held[nth], query.slots, stream[:, None])
    output = Output(transformer.final_norm(config, params, stream))
    return output, {"layers": tuple(layers), "held": tuple(held)}


def _read(held: Array, positions: Array) -> Array:
    """The streams [B, Q, E] that were left at `positions`."""
    return jnp.take_along_axis(held[:, 0], positions[..., None], 1, mode="clip")
