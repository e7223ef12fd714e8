"""Modules in a row that each predict one token further, on a target's states (MTP).

DeepSeek-AI, 2024, arXiv:2412.19437. Module k joins the normed state of the module
before it, of the target before the first, with the normed embedding of the token k + 1
further on, by one linear map, and puts one layer of its own and full causal attention
behind. Embedding and head are the target's; the norm before the head is the module's.
Parameters are {"module_0": {"state_norm", "token_norm", "fc", "layer", "norm"}, ...};
FastMTP (Cai et al., 2025, arXiv:2509.18362) has "module_0" alone, in every place.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Cache, DraftModules, Head, Params, Query
from pdecode.models import draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config


def init(config: Config, key: Array, num_modules: int, shared: bool = False) -> Params:
    """Random float32 parameters of modules for a target of `config`."""
    own = draft_layers.own_config(config)

    def module(key: Array) -> dict:
        first, second = jax.random.split(key)
        layer = draft_layers.block(own, second)
        joined = jnp.zeros((1, 1, 2 * own.width), jnp.float32)
        names = ("state_norm", "token_norm", "norm")
        norms = {name: layer["mlp_norm"] for name in names}
        fc = _joining(own).init(first, joined)["params"]
        return {**norms, "fc": fc, "layer": layer}

    keys = jax.random.split(key, 1 if shared else num_modules)
    return {f"module_{index}": module(each) for index, each in enumerate(keys)}


@functools.cache
def make_modules(
    config: Config, num_modules: int, shared: bool = False
) -> DraftModules:
    """The record of modules for a target of `config`; equal ones are one object."""
    if num_modules < 1:
        raise ValueError(f"{num_modules=} must be at least 1")
    own = draft_layers.own_config(config)
    return DraftModules(
        num_modules,
        transformer.make_model(own).init_cache,
        functools.partial(_apply, own, shared),
        functools.partial(_law, own, shared),
        config.width,
        f"modules of {config.name}",
    )


def _apply(
    own: Config, shared: bool, params: Params, target: Params, index: int, query: Query,
    cache: Cache | None,
) -> tuple[Array, Cache]:  # fmt: skip
    """States [B, Q, E]; without a cache the call's own lanes are the slots."""
    assert query.extra is not None, "a lane has the state before it"
    module = params["module_0" if shared else f"module_{index}"]
    token = transformer.embedded(own, target, query._replace(extra=None))
    token = parts.applied(parts.norm(own), module["token_norm"], token)
    state = query.extra.astype(token.dtype)
    state = parts.applied(parts.norm(own), module["state_norm"], state)
    joined = jnp.concatenate([state, token], -1)
    stream = parts.applied(_joining(own), module["fc"], joined)
    before = None if cache is None else cache[0]
    stream, after = draft_layers.through(own, module["layer"], stream, query, before)
    return stream, (after,)


def _law(
    own: Config, shared: bool, params: Params, target: Params, index: int, states: Array
) -> tuple[Array, Head]:
    module = params["module_0" if shared else f"module_{index}"]
    hidden = parts.applied(parts.norm(own), module["norm"], states)
    return hidden, transformer.make_model(own).head(target)


def _joining(own: Config):
    return parts.dense(own, own.width, False, "fc")
