"""What whole decodes are of: cases, ways of holding the weights, random weights."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pdecode import methods, prompts
from pdecode.contracts import Model, Params, Prompt
from pdecode.models import fusing, int8, shapes, transformer
from pdecode.models.config import Config


class Case(NamedTuple):
    """One decode to measure; some settings follow from the number of new tokens."""

    name: str
    shape: str
    method: Callable
    batch_size: int
    settings: Callable[[int], dict[str, Any]]


class Sizes(NamedTuple):
    """What is decoded: as published measurements have it."""

    prompt_len: int = 128
    max_new_tokens: int = 256
    is_small: bool = False  # two narrow layers in place of the shape's own


# A block of 32 where there are 256 new tokens, and four tokens a step.
def _dual(num_new: int) -> dict[str, Any]:
    size = max(num_new // 8, 1)
    return {"cache": "dual", "threshold": 0.9, "block_length": size}


def _canvas(num_new: int) -> dict[str, Any]:
    return {"steps": max(num_new // 4, 1), "block_length": max(num_new // 8, 1)}


CASES = (
    Case("autoregressive", "qwen3-8b", methods.autoregressive, 1, lambda _: {}),
    Case("window", "llada-8b", methods.fast_dllm, 1, _dual),
    Case("window_of_8", "llada-8b", methods.fast_dllm, 8, _dual),
    Case("lookup", "qwen3-8b", methods.prompt_lookup, 1, lambda _: {"num_draft": 7}),
    Case("canvas", "llada-8b", methods.llada, 1, _canvas),
)  # fmt: skip


def _separate(config: Config, params: Params) -> tuple[Model, Params]:
    return transformer.make_model(config), params


def _fused(config: Config, params: Params) -> tuple[Model, Params]:
    return transformer.make_model(config), fusing.fused(params)


def _int8(config: Config, params: Params) -> tuple[Model, Params]:
    model, params = _fused(config, params)
    return model, int8.weights(params)


def _int8_all(config: Config, params: Params) -> tuple[Model, Params]:
    model, params = _int8(config, params)
    return int8.int8_cache(model), params


# The ways of holding the weights, by name: (config, params) -> the model that decodes,
# and its parameters. The first of a run is what the tokens of the others are held to.
WEIGHTS: dict[str, Callable[[Config, Params], tuple[Model, Params]]] = {
    "separate": _separate,
    "fused": _fused,
    "int8": _int8,
    "int8kv": _int8_all,
}


def named(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, in the order of `CASES`; ValueError for others."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise ValueError(f"unknown decode {name!r}; known: {', '.join(known)}")
    return tuple(case for case in CASES if case.name in names)


def config_of(shape: str, dtype: str, sizes: Sizes) -> Config:
    """The shape, or what stands for it where sizes are small."""
    whole = shapes.config(shape, dtype)
    if not sizes.is_small:
        return whole
    kv_heads = 4 if whole.num_kv_heads == whole.num_heads else 2
    return dataclasses.replace(
        whole, vocab_size=512, width=64, num_layers=2, num_heads=4,
        num_kv_heads=kv_heads, head_dim=16, mlp_width=128, sliding=(), eos_ids=(),
        mask_id=None if whole.mask_id is None else 511,
    )  # fmt: skip


def random(config: Config) -> Params:
    """Parameters of a shape, one leaf at a time in the dtype of the run."""
    whole = shapes_of(config)
    leaves, tree = jax.tree.flatten(whole)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    filled = [_drawn(key, leaf.shape, config.dtype) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(tree, filled)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key, shape, dtype):
    return 0.02 * jax.random.normal(key, shape, dtype)


@functools.cache
def shapes_of(config: Config) -> Params:
    """The parameters of a shape, as shapes in the dtype of the run."""
    made = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, config.dtype), made)


def prompt_of(case: Case, config: Config, sizes: Sizes) -> Prompt:
    """Random rows, as long as sizes say."""
    rows = np.random.default_rng(0).integers(
        1, config.vocab_size // 2, (case.batch_size, sizes.prompt_len)
    )
    return prompts.from_rows(rows.tolist(), max_new_tokens=sizes.max_new_tokens)
