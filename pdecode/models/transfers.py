"""Hidden transfer: states of tokens that are not there yet, made of one that is.

Wu et al., 2024, arXiv:2404.12022. In a call of a target some lanes are pseudo states:
the k-th behind a token joins below layer `layers[k]`, as a linear map of what that
token's own state is there, and from there on is a lane like any other, which sees its
token's path and the pseudo states before it that have joined. What the target answers
at it is a guess for the position after its own. Real lanes see no pseudo state, so
their answers are the target's. Parameters: "maps" [K, E, E].

A pseudo lane is evaluated in the layers below too, which is thrown away: the saving of
the paper is not taken.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Output, Params, Query, Transfer
from pdecode.models import transformer
from pdecode.models.config import Config


def init(config: Config, num_states: int) -> Params:
    """Float32 identities: a pseudo state begins as its token's own."""
    eye = jnp.eye(config.width, dtype=jnp.float32)
    return {"maps": jnp.broadcast_to(eye, (num_states, *eye.shape))}


@functools.cache
def make_transfer(config: Config, layers: tuple[int, ...]) -> Transfer:
    """The record for a target of `config`; equal ones are one object.

    `layers[k]` of its layers are below the k-th pseudo state. ValueError for another
    number, and for a target that reads its answers one slot to the left.
    """
    check(config, layers)
    return Transfer(
        len(layers),
        functools.partial(_apply, config, layers),
        f"transfer of {config.name}",
        lambda model: make_transfer(transformer.config_of(model), layers),
    )


def check(config: Config, layers: tuple[int, ...]) -> None:
    """ValueError as `make_transfer`."""
    if not layers or min(layers) < 0 or max(layers) > config.num_layers:
        raise ValueError(
            f"{layers=} must each lie in [0, num_layers={config.num_layers}]: how many "
            "layers are below each pseudo state"
        )
    if config.shift:
        raise ValueError(f"{config.name} has shift=True: its states predict themselves")


def run(
    config: Config,
    layers: tuple[int, ...],
    params: Params,
    target: Params,
    query: Query,
    is_pseudo: Array,  # bool [B, Q]
    cache: Cache | None = None,
    remat: bool = False,
) -> tuple[Output, Cache]:
    """One call, with `query.visible.among`: it says which token a pseudo lane is of.

    That is the last real lane of the call that it sees; it is the k-th if it sees k
    pseudo lanes before itself. With `remat` a gradient computes each layer again.
    """
    among = query.visible.among
    assert among is not None, "of a call with pseudo states"
    is_real = among & ~is_pseudo[:, None]
    place = jnp.where(is_real, query.positions[:, None], -1)
    origin = jnp.argmax(place, -1)
    nth = (among & is_pseudo[:, None]).sum(-1) - 1
    stream = transformer.embedded(config, target, query)
    kept: list[Any] = [None] * config.num_layers if cache is None else list(cache)
    for layer in range(config.num_layers + 1):
        for k in (k for k, below in enumerate(layers) if below == layer):
            own = jnp.take_along_axis(stream, origin[..., None], 1)
            made = own @ params["maps"][k].astype(stream.dtype)
            joins = (is_pseudo & (nth == k))[..., None]
            stream = jnp.where(joins, made, stream)
        if layer == config.num_layers:
            break
        joined = [k for k, below in enumerate(layers) if below <= layer]
        is_there = ~is_pseudo | jnp.isin(nth, jnp.asarray(joined, jnp.int32))
        visible = query.visible._replace(among=among & is_there[:, None])
        call = functools.partial(transformer.one_layer, config, layer)
        stream, kept[layer] = (jax.checkpoint(call) if remat else call)(
            target[f"layer_{layer}"], query._replace(visible=visible), stream,
            kept[layer],
        )  # fmt: skip
    return Output(transformer.final_norm(config, target, stream)), tuple(kept)


def _apply(
    config: Config, layers: tuple[int, ...], params: Params, target: Params,
    query: Query, cache: Cache,
) -> tuple[Output, Cache]:  # fmt: skip
    if query.visible.among is None:  # what is committed, and nothing else
        return transformer.make_model(config).apply(target, query, cache)
    stored = caches.is_stored(query.slots, query.tokens.shape, cache[0]["k"])
    return run(config, layers, params, target, query, ~stored, cache)
