"""Weights of eight bits, one scale a column, and keys and values of eight bits.

A kernel [K, N] of a layer becomes codes int8 [K, N] and a "scale" [N] beside them; a
product is taken with the codes and its columns are scaled (`layers.Dense`), so that a
call reads half of what it does in bfloat16. Embedding, head, norms, routers and experts
stay as they are. Parameters alone say that a layer is held so: the model is the same.

A cache of `int8_cache` holds codes and a scale for each vector (`cache.Int8`), which
attention reads as they were rounded, those of a call's own lanes too. Both are other
models, near the one they were made from: what a method guarantees, it guarantees of
them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import Cache, Model, Params, Prompt
from pdecode.models import fusing, transformer
from pdecode.models.config import Held

_KERNELS = {"query", "key", "value", "out", "gate", "up", "down"}
_KERNELS |= {fusing.QKV, fusing.GATE_UP}


def weights(params: Params) -> Params:
    """`params` with the kernels of every layer in int8.

    A weight is off by 1 / 254 of its column's largest at most. Projections may be
    joined (`models.fusing`) before or after. ValueError where no layer is a
    `layers.Block`.
    """
    return _checked({name: _layer(part) for name, part in params.items()})


def weights_in_turn(params: Params) -> Params:
    """`weights`, which empties `params`: one layer at a time is in memory twice."""
    return _checked({name: _layer(params.pop(name)) for name in list(params)})


def applied(numbers: Held, model: Any, params: Params) -> tuple[Any, Params]:
    """A model that was loaded, as `numbers` wants it; what is no `Model` stays.

    Empties `params` where weights become int8.
    """
    if not isinstance(model, Model):
        return model, params
    if numbers.int8:
        params = weights_in_turn(params)
    return int8_cache(model) if numbers.int8kv else model, params


def is_int8(params: Params) -> bool:
    """Whether a kernel of `params` is held in int8."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


@functools.cache
def int8_cache(model: Model) -> Model:
    """`model` that keeps its keys and values in int8; one object for equal models.

    ValueError for a model that is no transformer of `models.transformer`.
    """
    base = model.init_cache
    if getattr(base, "func", None) is not transformer.make_cache:
        raise ValueError(
            f"{model.name} keeps a cache of its own kind, which has no int8: load it "
            "without +int8kv"
        )
    tapped = model.tapped
    return model._replace(
        init_cache=functools.partial(_init_cache, base),
        tapped=tapped and (lambda taps: int8_cache(tapped(taps))),
        exits=tuple(map(int8_cache, model.exits)),
        name=f"{model.name} with keys and values in int8",
    )


def _init_cache(base, prompt: Prompt, num_slots: int) -> Cache:
    def empty(leaf: Array) -> caches.Int8:
        codes = jnp.zeros(leaf.shape, jnp.int8)
        return caches.Int8(codes, jnp.zeros((*leaf.shape[:3], 1), leaf.dtype))

    return jax.tree.map(empty, base(prompt, num_slots))


def _checked(params: Params) -> Params:
    if not is_int8(params):
        raise ValueError(
            "no layer of this model has kernels that are held in int8: load it without "
            "+int8"
        )
    return params


def _layer(part: Any) -> Any:
    if not isinstance(part, dict) or "attention" not in part or "mlp" not in part:
        return part
    attention = {name: _kernel(name, each) for name, each in part["attention"].items()}
    mlp = {name: _kernel(name, each) for name, each in part["mlp"].items()}
    if "shared" in mlp:
        shared = mlp["shared"].items()
        mlp["shared"] = {name: _kernel(name, each) for name, each in shared}
    return {**part, "attention": attention, "mlp": mlp}


def _kernel(name: str, part: Any) -> Any:
    if name not in _KERNELS or not isinstance(part, dict) or "scale" in part:
        return part
    codes, scale = coded(part["kernel"])
    return {**part, "kernel": codes, "scale": scale}


@jax.jit
def coded(kernel: Array) -> tuple[Array, Array]:
    """Codes int8 [K, N] and scales [N] of a kernel, in its dtype."""
    columns = caches.int8(kernel.T)
    return columns.codes.T, columns.scale[:, 0]
