"""A decoder-only transformer over an explicit slot cache: Flax linen, explicit params.

Parameters are a plain dict: "embed" [V, E] (and "positions" [max_positions, E] when
learned), "layer_0" .. "layer_{n-1}", "norm", and "head" [V, E] unless tied. The cache
is a tuple of {"k", "v"}, one a layer, leaves [B, Hkv, S, D]; keys are stored rotated.
A decoding call runs layer after layer; `forward` scans over them for training.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    Embedding,
    Head,
    Model,
    Output,
    Params,
    Prompt,
    Query,
    SlotRun,
    Visibility,
)
from pdecode.kernels.attention.api import narrowed
from pdecode.models import layers as parts
from pdecode.models.config import Config, Experts, Rope
from pdecode.sampling import BANNED

__all__ = [
    "Config", "Experts", "Rope", "config_of", "forward", "init", "layer_parallel",
    "make_model", "shifted",
]  # fmt: skip


def init(config: Config, key: Array) -> Params:
    """Random float32 parameters; `key` is consumed."""
    keys = jax.random.split(key, config.num_layers + 3)
    embed = jax.random.normal(keys[0], (config.vocab_size, config.width), jnp.float32)
    scale = config.width**-0.5 if config.tied or config.embed_scale else 1.0
    params = {"embed": embed * scale}
    if config.rope is None:
        assert config.max_positions is not None, "Config checked it"
        table = jax.random.normal(keys[1], (config.max_positions, config.width))
        params["positions"] = 0.1 * table.astype(jnp.float32)
    if not config.tied:
        head = jax.random.normal(keys[2], (config.vocab_size, config.width))
        params["head"] = config.width**-0.5 * head.astype(jnp.float32)
    stream = jnp.zeros((1, 1, config.width), config.dtype)
    place = jnp.zeros((1, 1), jnp.int32)
    visible = Visibility(place, place + 1)
    for layer in range(config.num_layers):
        params[f"layer_{layer}"] = parts.Block(own_config(config, layer)).init(
            keys[3 + layer],
            stream,
            angles_of(config, layer, place),
            visible,
            None,
            None,
        )["params"]
    params["norm"] = parts.norm(config).init(key, stream)["params"]
    return params


@functools.cache
def make_model(config: Config) -> Model:
    """The decoder's view of `config`; equal configurations give the same object.

    `query.extra` is added to the (scaled) embedding where `query.has_extra`. The model
    builds no causal mask: queries see what `query.visible` says. Sliding layers narrow
    its intervals, which needs slot == position for stored keys.
    """
    from pdecode.models import exits  # which are made of this module's layers

    if config.shift:
        base = make_model(dataclasses.replace(config, shift=False))
        return shifted(base, config.width, config.dtype)
    return Model(
        init_cache=functools.partial(make_cache, config),
        apply=functools.partial(_apply, config),
        encode=functools.partial(_apply, config),
        head=functools.partial(_head, config),
        move=caches.move,
        vocab_size=config.vocab_size,
        mask_id=config.mask_id,
        eos_ids=config.eos_ids,
        predicts=config.predicts,
        attention=config.attention,
        block_len=config.block_len,
        max_positions=config.max_positions,
        taps=config.taps,
        name=config.name,
        embedding=Embedding(
            functools.partial(table, config), config.width, config.dtype
        ),
        slides=any(config.sliding),
        tapped=lambda taps: make_model(dataclasses.replace(config, taps=taps)),
        exits=exits.sub_models(config),
    )


@functools.cache
def layer_parallel(model: Model, group: int) -> Model:
    """`model`, of `make_model`, whose `apply` has `group` layers attend at once.

    EasySpec (2025, arXiv:2502.02493): between the first and the last layer, those of a
    group attend from the stream that it begins with; then each adds attention and MLP
    in turn: an approximation, for drafts; `encode` and a group of 1 are exact.
    ValueError for a group below 1, a shifted model, and taps.
    """
    if group < 1:
        raise ValueError(f"{group=} must be at least 1")
    if (config := config_of(model)).taps:
        raise ValueError(f"{model.name} keeps taps {config.taps}, which groups do not")
    apply = functools.partial(_apply_in_groups, config, group)
    name = f"{model.name} in groups of {group}"
    return model._replace(apply=apply, tapped=None, exits=(), name=name)


def config_of(model: Model) -> Config:
    """What `make_model` made `model` of; ValueError for what it did not make."""
    call: Any = model.apply
    if getattr(call, "func", None) is not _apply:
        raise ValueError(f"{model.name} is no plain transformer")
    return call.args[0]


def forward(
    config: Config,
    params: Params,
    tokens: Array,  # int32 [B, L]
    positions: Array | None = None,  # int32 [B, L]  None: counted in each segment
    segments: Array | None = None,  # int32 [B, L]  runs of equal ids; < 0: padding
    *,
    visible: Visibility | None = None,
    extra: Array | None = None,  # [B, L, E]
    has_extra: Array | None = None,  # bool [B, L]
    train: bool = True,
) -> Output:
    """Whole sequences without a cache, on the parameters that decoding uses.

    A token sees its own segment as `config.attention` says; padding is seen by nobody.
    `visible` replaces that rule: slots are indices into the sequence, or everything is
    in `among`. `train=True` scans over the layers, one period of the layer pattern at a
    time, and recomputes activations in the backward pass; `train=False` unrolls.
    Hidden states are not shifted for a shifted model: row i predicts token i + 1.
    Raises ValueError for taps together with train=True (the scan does not keep them).
    """
    if visible is None:
        visible, counted = sequence_visibility(config, tokens, segments)
        positions = counted if positions is None else positions
    elif positions is None:
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = jnp.broadcast_to(index, tokens.shape)
    query = Query(tokens, positions, positions, visible, extra, has_extra)
    stream = embedded(config, params, query)
    if not train:
        return _run(config, params, query, stream, None)[0]
    if config.taps:
        raise ValueError(
            f"taps={config.taps} need train=False: the scan over layers keeps none"
        )

    period = _period(config)
    blocks = [params[f"layer_{layer}"] for layer in range(config.num_layers)]
    stacked = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks[start::period])
        for start in range(period)
    ]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(stream, group):
        for layer, block in enumerate(group):
            stream, _ = one_layer(config, layer, block, query, stream, None)
        return stream, None

    stream, _ = jax.lax.scan(body, stream, stacked)
    return Output(final_norm(config, params, stream))


def sequence_visibility(
    config: Config, tokens: Array, segments: Array | None = None
) -> tuple[Visibility, Array]:
    """What each token of whole sequences [B, L] sees, and its position, int32 [B, L].

    `segments` as in `forward`. Block-causal blocks are counted from the start of the
    segment.
    """
    batch, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    written = None
    start, stop = jnp.zeros_like(index), jnp.full_like(index, length)
    if segments is not None:
        written = segments >= 0
        # segments  3 3 3 7 7   -> start 0 0 0 3 3, stop 3 3 3 5 5
        change = segments[:, 1:] != segments[:, :-1]
        edge = jnp.ones((batch, 1), bool)
        first = jnp.concatenate([edge, change], axis=1)
        last = jnp.concatenate([change, edge], axis=1)
        start = jax.lax.cummax(jnp.where(first, index, 0), axis=1)
        stop = jax.lax.cummin(jnp.where(last, index + 1, length), axis=1, reverse=True)
    positions = index - start
    if config.attention == "causal":
        stop = index + 1
    elif config.block_len is not None:
        block_end = (positions // config.block_len + 1) * config.block_len
        stop = jnp.minimum(stop, start + block_end)
    return Visibility(start, stop, written), positions


@functools.cache
def shifted(model: Model, width: int, dtype: str = "float32") -> Model:
    """A model whose raw output at a slot predicts the next slot, read in place.

    Dream (Ye et al., 2025, arXiv:2508.15487) keeps the shift of the autoregressive
    model it grew from. The cache keeps the last raw hidden state of every slot, leaf
    [B, 1, S, E], and the output of a lane is that of the slot left of its position
    (slot 0 reads itself). Stored lanes must have slot == position. The first lane of a
    window uses the state that the last call to evaluate its left neighbour left behind,
    which is zero if there was none. Taps stay unshifted.
    """

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        batch = prompt.tokens.shape[0]
        hidden = jnp.zeros((batch, 1, num_slots, width), dtype)
        return {"model": model.init_cache(prompt, num_slots), "hidden": hidden}

    def shift(call, params, query: Query, cache: Cache):
        output, inner = call(params, query, cache["model"])
        hidden = caches.write(cache["hidden"], query.slots, output.hidden[:, None])
        left = jnp.maximum(query.positions - 1, 0)
        read = jax.vmap(lambda row, slot: row[0].at[slot].get(mode="clip"))
        output = output._replace(hidden=read(hidden, left))
        return output, {"model": inner, "hidden": hidden}

    def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
        return {
            "model": model.move(cache["model"], source, target),
            "hidden": caches.move(cache["hidden"], source, target),
        }

    return model._replace(
        init_cache=init_cache,
        apply=functools.partial(shift, model.apply),
        encode=functools.partial(shift, model.encode),
        move=move,
        is_shifted=True,
    )


def resized(model: Model, params: Params, size: int) -> tuple[Model, Params]:
    """A transformer over `size` ids: rows of padding left out, or added and banned.

    Its embedding, and its head if it has one of its own, have `size` rows.
    """
    tables = {}
    for name in {"embed", "head"} & set(params):
        rows = params[name][:size]
        tables[name] = jnp.pad(rows, ((0, size - rows.shape[0]), (0, 0)))
    return _over(model, size), {**params, **tables}


@functools.cache
def _over(model: Model, size: int) -> Model:
    """One object for equal arguments: programs are kept by their models."""
    num_words = min(model.vocab_size, size)

    def head(params: Params) -> Head:
        made = model.head(params)
        if num_words == size:
            return made
        is_word = jnp.arange(size) < num_words
        return made._replace(bias=jnp.where(is_word, 0.0, BANNED))

    return model._replace(vocab_size=size, head=head)


def make_cache(config: Config, prompt: Prompt, num_slots: int) -> Cache:
    """An empty cache of `num_slots` for the rows of `prompt`."""
    shape = (len(prompt.tokens), config.num_kv_heads, num_slots, config.head_dim)
    return tuple(
        {"k": jnp.zeros(shape, config.dtype), "v": jnp.zeros(shape, config.dtype)}
        for _ in range(config.num_layers)
    )


def _apply(
    config: Config, params: Params, query: Query, cache: Cache
) -> tuple[Output, Cache]:
    return _run(config, params, query, embedded(config, params, query), cache)


def _run(config, params, query, stream, cache) -> tuple[Output, Cache]:
    taps = {"embed": stream} if "embed" in config.taps else {}
    stored = [None] * config.num_layers if cache is None else list(cache)
    for layer in range(config.num_layers):
        block, own = params[f"layer_{layer}"], stored[layer]
        stream, stored[layer] = one_layer(config, layer, block, query, stream, own)
        if f"layer_{layer}" in config.taps:
            taps[f"layer_{layer}"] = stream
    return Output(final_norm(config, params, stream), taps), tuple(stored)


def _apply_in_groups(config: Config, group: int, params, query: Query, cache: Cache):
    stream, caches = embedded(config, params, query), list(cache)
    last = config.num_layers - 1
    middle = [range(i, min(i + group, last)) for i in range(1, last, group)]
    for layers in ([0], *middle, [last] if last else []):
        branches = []
        for layer in layers:
            block, visible = params[f"layer_{layer}"], visible_of(config, layer, query)
            angles = angles_of(config, layer, query.positions)
            branch, caches[layer] = parts.attended(
                config, block, stream, angles, visible, query.slots, caches[layer]
            )
            branches.append(branch)
        for layer, branch in zip(layers, branches):
            own, block = own_config(config, layer), params[f"layer_{layer}"]
            stream = stream + branch
            stream = stream + parts.mixed(own, block, stream)
    return Output(final_norm(config, params, stream)), tuple(caches)


def one_layer(config, layer: int, block, query: Query, stream: Array, cache: Any):
    """The stream [B, Q, E] behind a layer of parameters `block`, and its cache."""
    visible = visible_of(config, layer, query)
    angles = angles_of(config, layer, query.positions)
    return parts.Block(own_config(config, layer)).apply(
        {"params": block}, stream, angles, visible, query.slots, cache
    )


def visible_of(config: Config, layer: int, query: Query) -> Visibility:
    """What the queries of a layer see: less where it is sliding."""
    if not config.sliding[layer]:
        return query.visible
    assert config.window is not None, "Config checked it"
    is_causal = config.attention == "causal"
    return narrowed(query.visible, query.positions, config.window, causal=is_causal)


def own_config(config: Config, layer: int) -> Config:
    """The sizes of one layer: the first ones may be dense in a mixture of experts."""
    if layer < config.dense_layers:
        return dataclasses.replace(config, experts=None, dense_layers=0)
    return config


def angles_of(config: Config, layer: int, positions: Array):
    """What turns queries and keys of a layer; None: positions are learned."""
    rope = config.rope
    if config.sliding[layer] and config.rope_sliding is not None:
        rope = config.rope_sliding
    return None if rope is None else parts.rotary(rope, config.head_dim, positions)


def table(config: Config, params: Params, tokens: Any = slice(None)) -> Array:
    """The embeddings of all tokens [V, E], or rows [..., E] of some."""
    rows = params["embed"][tokens].astype(config.dtype)
    if config.embed_scale is None:
        return rows
    return rows * jnp.asarray(config.embed_scale, config.dtype)


def embedded(config: Config, params: Params, query: Query) -> Array:
    """What the layers begin with, [B, Q, E]."""
    stream = table(config, params, query.tokens)
    if config.rope is None:
        learned = params["positions"][query.positions]
        stream = stream + learned.astype(config.dtype)
    if query.extra is not None:
        extra = query.extra.astype(config.dtype)
        if query.has_extra is not None:
            extra = jnp.where(query.has_extra[:, :, None], extra, 0)
        stream = stream + extra
    return stream


def final_norm(config: Config, params: Params, stream: Array) -> Array:
    return parts.applied(parts.norm(config), params["norm"], stream)


def _head(config: Config, params: Params) -> Head:
    weight = params["embed"] if config.tied else params["head"]
    return Head(weight, None, config.logit_scale, config.logit_soft_cap)


def _period(config: Config) -> int:
    """Length of the repeating pattern of layers, so that one scan covers them."""
    for period in range(1, config.num_layers + 1):
        pattern = config.sliding[:period]
        is_even = pattern * (config.num_layers // period) == config.sliding
        if is_even and not config.dense_layers:
            return period
    return config.num_layers
