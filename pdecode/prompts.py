"""Ragged batches of token ids, and what every decode does with them first."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

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


def from_rows(
    rows: Sequence[Sequence[int]],
    *,
    max_new: int | Sequence[int],
    row_ids: Sequence[int] | None = None,
    holes: Sequence[Sequence[bool]] | None = None,
    pad_to: int | None = None,
    model: Model | None = None,
    context: Any = None,
) -> Prompt:
    """A Prompt from B rows of ids, right-padded to the longest or to `pad_to`.

    `max_new` is the number of tokens to generate, one for all or one a row; `holes`
    marks prompt positions to fill; `row_ids` (default 0, 1, ...) name each row's noise.
    With `model` the ids are checked against its vocabulary. Raises ValueError.
    """
    if not rows:
        raise ValueError("rows is empty: pass at least one prompt")
    lengths = np.array([len(row) for row in rows], np.int32)
    width = max(int(lengths.max()), 1) if pad_to is None else pad_to
    if width < lengths.max():
        raise ValueError(f"{pad_to=} is shorter than the longest row, {lengths.max()}")
    tokens = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        ids = np.asarray(row, np.int64)
        limit = np.iinfo(np.int32).max if model is None else model.vocab_size
        if ids.size and not (0 <= ids.min() and ids.max() < limit):
            bad = ids[(ids < 0) | (ids >= limit)][0]
            raise ValueError(f"row {index} has id {bad}, outside [0, {limit})")
        tokens[index, : len(row)] = ids
    limits = np.broadcast_to(np.asarray(max_new, np.int32), lengths.shape)
    if limits.min() < 1:
        raise ValueError(f"max_new={limits.min()} must be at least 1")
    masked = None
    if holes is not None:
        masked = np.zeros(tokens.shape, bool)
        for index, (row, hole) in enumerate(zip(rows, holes, strict=True)):
            if len(row) != len(hole):
                raise ValueError(
                    f"holes[{index}] has {len(hole)} entries for {len(row)} tokens"
                )
            masked[index, : len(hole)] = hole
    ids = np.arange(len(rows)) if row_ids is None else np.asarray(row_ids)
    if len(ids) != len(rows):
        raise ValueError(f"{len(ids)} row_ids for {len(rows)} rows")
    return Prompt(
        tokens=jnp.asarray(tokens),
        lengths=jnp.asarray(lengths),
        row_ids=jnp.asarray(ids, jnp.int32),
        max_new=jnp.asarray(limits),
        masked=None if masked is None else jnp.asarray(masked),
        context=context,
    )


def reopened(
    row: Sequence[int], start: int, stop: int, size: int
) -> tuple[list[int], list[bool]]:
    """`row` with [start, stop) replaced by `size` holes: (tokens, holes).

    What `from_rows` takes; the rest of the row stays as it is. ValueError for a span
    that is not in the row.
    """
    if not 0 <= start <= stop <= len(row):
        raise ValueError(f"[{start}, {stop}) is no span of a row of {len(row)} tokens")
    tokens = [*row[:start], *[0] * size, *row[stop:]]
    is_hole = [start <= place < start + size for place in range(len(tokens))]
    return tokens, is_hole


def bucket(width: int) -> int:
    """The width that prompts of `width` tokens are padded to, to share programs.

    A multiple of 16, above 256 of an eighth of the power of two below: few programs
    serve all lengths, and a prompt above 128 tokens grows by an eighth at most.
    """
    step = max(16, 1 << max(width.bit_length() - 4, 0))
    return -(-width // step) * step


def buffer_length(prompt: Prompt, max_new_tokens: int, model: Model) -> int:
    """L, the prompt's width and `max_new_tokens`; ValueError if `model` has less."""
    width = prompt.tokens.shape[1]
    length = width + max_new_tokens
    if model.max_positions is not None and length > model.max_positions:
        raise ValueError(
            f"prompt ({width}) and max_new_tokens ({max_new_tokens}) need {length} "
            f"positions, but {model.name} has {model.max_positions}"
        )
    return length


def prefill(
    model: Model,
    params: Params,
    prompt: Prompt,
    cache: Cache,
    *,
    drop: int = 0,
    stop: Array | None = None,
) -> tuple[Output | None, Cache]:
    """Stores the text but its last `drop` tokens in slots 0, 1, ...: (Output, cache).

    Each token sees those up to itself, or the slots before `stop` (int32 [B]). The
    output covers P - drop lanes; None where that is none, and no call is made.
    """
    width = prompt.tokens.shape[1] - drop
    if width < 1:
        return None, cache
    batch = prompt.tokens.shape[0]
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    is_text = place < prompt.lengths[:, None] - drop
    to = place + 1 if stop is None else jnp.broadcast_to(stop[:, None], place.shape)
    query = Query(
        tokens=jnp.where(is_text, prompt.tokens[:, :width], 0),
        positions=place,
        # What padding leaves behind the text is written over before it is seen.
        slots=SlotRun(jnp.zeros_like(prompt.lengths)),
        visible=Visibility(start=jnp.zeros_like(place), stop=to),
    )
    return model.encode(params, query, cache)
