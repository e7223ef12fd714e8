"""The axial transformer: a row of an image at a time sees all rows above.

Ho et al., 2019, arXiv:1912.12180. The outer stack, rows without a mask and columns with
one in turn, makes of the rows above a context for each place of the next; the inner
stack reads that and the pixels to the left, by attention within the row. So the context
is made once a row and each pixel costs a pass of one lane over its row, and yet every
pixel depends on all before it: `methods.autoregressive` on this model is the paper's
semi-parallel sampling. The last token of a prompt is the class; no other is read.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import cache as caches
from pdecode.contracts import (
    Cache,
    Model,
    Output,
    Params,
    Prompt,
    Query,
    SlotRun,
    Visibility,
)
from pdecode.models import layers as parts
from pdecode.models import transformer
from pdecode.models.config import Config


def init(config: Config, height: int, side: int, num_pairs: int, key: Array) -> Params:
    """Random parameters of `num_pairs` outer, `config.num_layers` inner layers."""
    own, grid, *keys = jax.random.split(key, 2 + 2 * num_pairs)
    rows, columns = jax.random.normal(grid, (2, max(height, side), config.width))
    inner = transformer.init(config, own)
    outer = {}
    for i, each in enumerate(keys):
        name = f"{'row' if i % 2 == 0 else 'column'}_{i // 2}"
        outer[name] = transformer.init(config, each)["layer_0"]
    return {**inner, "outer": outer, "rows": rows[:height], "columns": columns[:side]}


def forward(config: Config, params: Params, classes: Array, tokens: Array) -> Array:
    """Hidden states [B, H, W, E] that predict each of `tokens` int32 [B, H, W]."""
    batch, height, side = tokens.shape
    line = jnp.broadcast_to(jnp.arange(height, dtype=jnp.int32), (batch, height))
    above, _ = _outer(config, params, classes, tokens, line, None, None)
    above = jnp.pad(above[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    left = jnp.pad(params["embed"][tokens[:, :, :-1]], ((0, 0),) * 2 + ((1, 0), (0, 0)))
    place = jnp.broadcast_to(jnp.arange(side, dtype=jnp.int32), (batch * height, side))
    stream = left + above + _where(params, classes, line)
    stream = stream.reshape(batch * height, side, -1)
    stream, _ = _inner(config, params, stream, place, None, None)
    return stream.reshape(batch, height, side, -1)


@functools.cache
def make_model(config: Config, height: int, side: int, num_pairs: int) -> Model:
    """A Model of `height` rows of `side` pixels; parameters are those of `init`.

    Calls have one lane, in raster order, whose slot is its position; that of a row's
    first pixel also makes the row's context, from `side` lanes of the row above. The
    cache's "outer" int32 [B] counts those passes, which no statistic does. Raises
    ValueError for calls of several lanes, and for a configuration that is not a plain
    causal one.
    """
    plain = {"attention": "causal", "shift": False, "taps": (), "window": None}
    plain |= {"embed_scale": None, "dense_layers": 0}
    odd = {name: getattr(config, name) for name in plain}
    odd = {name: value for name, value in odd.items() if value != plain[name]}
    # It attends within rows and within columns, whose places are those of a line.
    if config.rope is None or config.rope.columns is not None:
        odd["rope"] = config.rope
    if odd:
        told = ", ".join(f"{name}={value!r}" for name, value in odd.items())
        raise ValueError(
            f"an axial model needs a plain causal {config.name} with rotary positions "
            f"of a line, not {told}"
        )
    base = transformer.make_model(config)

    def init_cache(prompt: Prompt, num_slots: int) -> Cache:
        batch = prompt.tokens.shape[0]
        last = jnp.maximum(prompt.lengths - 1, 0)[:, None]
        kv = (config.num_kv_heads,)
        column = (batch * side, *kv, height, config.head_dim)
        row = (batch, *kv, side, config.head_dim)

        def blank(shape, number):
            return tuple(
                {name: jnp.zeros(shape, config.dtype) for name in ("k", "v")}
                for _ in range(number)
            )

        return {
            "context": {
                "columns": blank(column, num_pairs),
                "above": jnp.zeros((batch, side, config.width), config.dtype),
            },
            "row": blank(row, config.num_layers),
            "tokens": jnp.zeros((batch, 1, num_slots, 1), jnp.int32),
            "class": jnp.take_along_axis(prompt.tokens, last, 1)[:, 0],
            "lengths": prompt.lengths,
            "outer": jnp.zeros(batch, jnp.int32),
        }

    def encode(params, query: Query, cache: Cache):
        """The prompt's text, of which nothing is read."""
        blank = jnp.zeros((*query.tokens.shape, config.width), config.dtype)
        return Output(blank), cache

    def move(cache: Cache, source: Array, target: Array | SlotRun) -> Cache:
        raise ValueError("an axial model draws its pixels one by one, in place")

    return base._replace(
        init_cache=init_cache,
        apply=functools.partial(_apply, config, height, side),
        encode=encode,
        move=move,
        max_positions=None,
        embedding=None,
        tapped=None,
        exits=(),
        name=f"axial {config.name}",
    )


def _apply(config: Config, height: int, side: int, params, query: Query, cache: Cache):
    if query.tokens.shape[1] != 1 or query.visible.among is not None:
        raise ValueError(
            "an axial model draws one pixel a call, but the call has "
            f"{query.tokens.shape[1]} lanes: use methods.autoregressive"
        )
    batch, token = query.tokens.shape[0], query.tokens[:, 0]
    tokens = caches.write(cache["tokens"], query.slots, query.tokens[:, None, :, None])
    stored = caches.is_stored(query.slots, (batch, 1), tokens)
    lengths, last = cache["lengths"], height * side - 1
    number = jnp.clip(query.positions[:, 0] + 1 - lengths, 0, last)
    row, column = number // side, number % side
    begins = stored[:, 0] & (column == 0) & (row > 0)
    first = lengths + (row - 1) * side
    of_above = jnp.maximum(first, 0)[:, None] + jnp.arange(side)[None]
    line = jnp.take_along_axis(tokens[:, 0, :, 0], of_above, 1)

    def anew(context):
        above, columns = _outer(
            config, params, cache["class"], line[:, None], row[:, None] - 1,
            context["columns"], begins,
        )  # fmt: skip
        above = jnp.where(begins[:, None, None], above[:, 0], context["above"])
        return (), {"columns": columns, "above": above}

    _, context = caches.when(
        begins.any(), anew, lambda context: ((), context), cache["context"]
    )
    left = jnp.where((column > 0)[:, None], params["embed"][token], 0)
    places = _where(params, cache["class"], row[:, None])[:, 0]
    stream = left + (context["above"] + places)[jnp.arange(batch), column]
    place = column[:, None]
    slots = jnp.where(stored, place, caches.UNSTORED)
    stream, kept = _inner(
        config, params, stream[:, None].astype(config.dtype), place, slots, cache["row"]
    )
    return Output(stream), {
        **cache,
        "context": context,
        "row": kept,
        "tokens": tokens,
        "outer": cache["outer"] + begins,
    }


def _outer(config, params, classes, tokens, line, columns, stored):
    """(what rows tell, [B, R, W, E]; caches) of whole rows of `tokens` [B, R, W].

    `line` int32 [B, R] are their numbers. With `columns`, leaves [B * W, Hkv, H, D], a
    row is stored where `stored` [B], and sees the rows stored before.
    """
    batch, size, side = tokens.shape
    stream = params["embed"][tokens] + _where(params, classes, line)
    stream = stream.astype(config.dtype)
    across = jnp.broadcast_to(jnp.arange(side, dtype=jnp.int32), (batch * size, side))
    down = jnp.repeat(line, side, 0)
    slots = None
    if stored is not None:
        slots = jnp.where(jnp.repeat(stored, side)[:, None], down, caches.UNSTORED)
    kept = []
    for pair in range(len(params["outer"]) // 2):
        flat = stream.reshape(batch * size, side, -1)
        flat, _ = _attended(
            config, params["outer"][f"row_{pair}"], flat, across, across * 0 + side
        )
        stream = flat.reshape(batch, size, side, -1).swapaxes(1, 2)
        flat = stream.reshape(batch * side, size, -1)
        old = None if columns is None else columns[pair]
        block = params["outer"][f"column_{pair}"]
        flat, new = _attended(config, block, flat, down, down + 1, slots, old)
        stream = flat.reshape(batch, side, size, -1).swapaxes(1, 2)
        kept.append(new)
    return stream, tuple(kept)


def _inner(config, params, stream, place, slots, cache):
    """(hidden, caches) of lanes at the columns `place` of their rows, [R, Q, E]."""
    kept = []
    for layer in range(config.num_layers):
        old = None if cache is None else cache[layer]
        block = params[f"layer_{layer}"]
        stream, new = _attended(config, block, stream, place, place + 1, slots, old)
        kept.append(new)
    return transformer.final_norm(config, params, stream), tuple(kept)


def _attended(config: Config, block: Any, stream, place, stop, slots=None, cache=None):
    angles = config.rope and parts.rotary(config.rope, config.head_dim, place)
    visible = Visibility(jnp.zeros_like(stop), stop)
    return parts.Block(config).apply(
        {"params": block}, stream, angles, visible, slots, cache
    )


def _where(params: Params, classes: Array, line: Array) -> Array:
    """[B, R, W, E]: class, row and column."""
    rows = params["embed"][classes][:, None] + params["rows"][line]
    return rows[:, :, None] + params["columns"][None, None]
