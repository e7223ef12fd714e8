"""Falcon's draft layer: a recurrent network, then attention that sees a whole block.

Gao et al., 2024, arXiv:2412.12639. As EAGLE's layer (arXiv:2401.15077) it reads the
embedding of a token beside the feature of the position before it; an LSTM of a few
layers along the text joins them. The K lanes of a block see each other besides what
stands before, and each answers with the feature K - 1 positions behind its own, so that
one call says the next K features. With one attention layer what a lane is to others
does not depend on its block: blocks may begin anywhere. Parameters: "lstm_i" with
"input" [2E or E, 4E] and "state" [E, 4E] (gates in, forget, new, out), and "layer_0", a
transformer's without the norm in front. Deviation: no dropout.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.contracts import BlockLayer, Cache, Params, Query
from pdecode.models import draft_layers, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config


def init(config: Config, key: Array, num_recurrent: int = 2) -> Params:
    """Random float32 parameters for a target of `config`."""
    keys, width = jax.random.split(key, 2 * num_recurrent + 1), config.width
    params: dict = {"layer_0": draft_layers.init(config, keys[-1])["layer_0"]}
    for index in range(num_recurrent):
        size = width if index else 2 * width
        kernels = (
            scale**-0.5 * jax.random.normal(each, (scale, 4 * width), jnp.float32)
            for scale, each in zip((size, width), keys[2 * index :])
        )
        bias = jnp.zeros(4 * width, jnp.float32)
        params[f"lstm_{index}"] = {
            "input": {"kernel": next(kernels), "bias": bias},
            "state": {"kernel": next(kernels)},
        }
    return params


@functools.cache
def make_layer(
    config: Config, block_len: int = 2, num_recurrent: int = 2
) -> BlockLayer:
    """The record of a layer for a target of `config`; equal ones are one object."""
    if block_len < 2 or num_recurrent < 1:
        raise ValueError(
            f"{block_len=} must be at least 2, {num_recurrent=} at least 1"
        )
    own = draft_layers.own_config(config)
    return BlockLayer(
        init_cache=transformer.make_model(own).init_cache,
        advance=functools.partial(_advance, own, num_recurrent),
        apply=functools.partial(_apply, own),
        block_len=block_len,
        num_memories=num_recurrent,
        width=config.width,
        name=f"block layer of {config.name}",
    )


def _advance(
    own: Config, num: int, params: Params, target: Params, tokens: Array,
    features: Array, memory: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Along a text: streams [B, Q, E], and the memory [B, Q, R, 2, E] after each."""
    model = transformer.make_model(own)
    assert model.embedding is not None, "of every transformer"
    token = model.embedding.table(target)[tokens]
    joined = jnp.concatenate([token, features.astype(token.dtype)], -1)
    first = params["lstm_0"]["input"]
    bias = first["bias"].reshape(1, 1, -1)
    fed = (joined @ first["kernel"] + bias).astype(token.dtype)

    def turn(memory: Array, fed: Array):
        after = []
        for index in range(num):
            cell = params[f"lstm_{index}"]
            if index > 0:
                given = cell["input"]
                fed = after[-1][:, 0] @ given["kernel"] + given["bias"].reshape(1, -1)
            state, carried = memory[:, index, 0], memory[:, index, 1]
            gates = fed + state @ cell["state"]["kernel"]
            enter, keep, new, leave = jnp.split(gates, 4, -1)
            carried = jax.nn.sigmoid(keep) * carried
            carried = carried + jax.nn.sigmoid(enter) * jnp.tanh(new)
            state = jax.nn.sigmoid(leave) * jnp.tanh(carried)
            after.append(jnp.stack([state, carried], 1).astype(memory.dtype))
        made = jnp.stack(after, 1)
        return made, made

    memory = memory.astype(token.dtype)
    _, every = jax.lax.scan(turn, memory, fed.swapaxes(0, 1))
    every = every.swapaxes(0, 1)
    return every[:, :, -1, 0], every


def _apply(own: Config, params: Params, query: Query, cache: Cache | None):
    """Features [B, Q, E] of streams (`Query.extra`) that see what the query says."""
    assert query.extra is not None, "a lane is a stream"
    stream, block = query.extra, params["layer_0"]
    angles = draft_layers.angles(own, query.positions)
    # What is recurrent is not normed again.
    branch, after = parts.applied(
        parts.Attention(own), block["attention"], stream, angles, query.visible,
        query.slots, None if cache is None else cache[0],
    )  # fmt: skip
    stream = stream + branch
    return stream + parts.mixed(own, block, stream), (after,)
