"""Control by a second image: features of each place, added where it is predicted.

ControlAR, Li et al., 2025, arXiv:2410.02705. Before the first layer of each third the
stream is given strength * MLP(c), c being the feature of the place that the lane
predicts: a next-token model's lane at position p reads c of p + 1, so the last token of
the prompt reads c[0]. It is gathered by that place and not by the lane's number, which
is what a window of guesses, a wavefront, a tree and a stand-in need. The model is an
ordinary Model: every method decodes it, and what it guarantees holds.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache, Model, Output, Params, Prompt, Query, SlotRun
from pdecode.models import transformer
from pdecode.models.config import Config

NUM_DEPTHS = 3


def depths(config: Config) -> tuple[int, ...]:
    """The layers that the control is added before: the first of each third."""
    firsts = (config.num_layers * i // NUM_DEPTHS for i in range(NUM_DEPTHS))
    return tuple(dict.fromkeys(firsts))


def init(config: Config, features: int, key: Array) -> Params:
    """Random parameters: the transformer's and "control", an MLP a depth."""
    own, rest = jax.random.split(key)
    control = {}
    for layer in depths(config):
        rest, up, down = jax.random.split(rest, 3)
        control[f"layer_{layer}"] = {
            "up": {"kernel": _normal(up, features, config.width)},
            "down": {"kernel": _normal(down, config.width, config.width)},
        }
    return {**transformer.init(config, own), "control": control}


@functools.cache
def controlled(config: Config, num_places: int, strength: float = 1.0) -> Model:
    """The model of `config` that reads `prompt.context` [B, N, F], N = `num_places`.

    Place n is the n-th position behind the prompt; what predicts no place reads
    nothing. A `strength` of 0 is the model of `config`. Raises ValueError for a model
    with taps or a shift, and for another context.
    """
    if config.taps or config.shift:
        raise ValueError(
            f"control goes into a plain transformer, but {config.name} has "
            f"taps={config.taps} and shift={config.shift}"
        )
    base, first_layers = transformer.make_model(config), depths(config)

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        if prompt.context is None or prompt.context.shape[1:2] != (num_places,):
            found = None if prompt.context is None else prompt.context.shape
            raise ValueError(
                f"{config.name} is controlled at {num_places} places, but the prompt's "
                f"context is {found}: give [B, {num_places}, F]"
            )
        return {
            "model": base.init_cache(prompt, num_slots),
            "control": prompt.context,
            "lengths": prompt.lengths,
        }

    def apply(params, query: Query, cache: Cache):
        given = _at(config, query.positions, cache)
        stream, kept = transformer.embedded(config, params, query), []
        for layer, old in enumerate(cache["model"]):
            if layer in first_layers:
                mlp = params["control"][f"layer_{layer}"]
                inner = jax.nn.gelu(given @ mlp["up"]["kernel"])
                added = strength * (inner @ mlp["down"]["kernel"])
                stream = stream + added.astype(stream.dtype)
            block = params[f"layer_{layer}"]
            stream, new = transformer.one_layer(
                config, layer, block, query, stream, old
            )
            kept.append(new)
        hidden = transformer.final_norm(config, params, stream)
        return Output(hidden), {**cache, "model": tuple(kept)}

    def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
        return {**cache, "model": base.move(cache["model"], source, target)}

    return base._replace(
        init_cache=init_cache,
        apply=apply,
        encode=apply,
        move=move,
        tapped=None,
        exits=(),
        name=f"controlled {config.name}",
    )


def _at(config: Config, positions: Array, cache: Cache) -> Array:
    """[B, Q, F]: the feature of the place that each lane predicts, or zeros."""
    ahead = 1 if config.predicts == "next" else 0
    place = positions + ahead - cache["lengths"][:, None]
    control = cache["control"]
    inside = (place >= 0) & (place < control.shape[1])
    index = jnp.clip(place, 0, control.shape[1] - 1)[..., None]
    # No bias in the MLP: what reads zeros is given nothing.
    return jnp.where(inside[..., None], jnp.take_along_axis(control, index, 1), 0)


def _normal(key: Array, rows: int, columns: int) -> Array:
    return rows**-0.5 * jax.random.normal(key, (rows, columns), jnp.float32)
