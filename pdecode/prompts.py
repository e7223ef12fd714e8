"""Ragged batches of token ids, and what every decode does with them first."""

import collections
import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import jax
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

__all__ = [
    "bucket",
    "buffer_length",
    "encode",
    "from_rows",
    "pinned_behind_holes",
    "prefill",
    "reopened",
    "row_ids",
]


def encode(prompt: str | Sequence, tokenizer: Any) -> list[list[int]]:
    """Rows of ids; ValueError for an empty prompt or what is neither text nor ids."""
    if isinstance(prompt, str):
        prompt = [prompt]
    prompt = _plain(prompt)
    if not isinstance(prompt, Sequence):
        raise ValueError(f"the prompt is {prompt!r}, neither text nor ids")
    prompt = [_plain(row) for row in prompt]
    if len(prompt) and not isinstance(prompt[0], (str, list, tuple)):
        prompt = [prompt]
    if not len(prompt):
        raise ValueError("the prompt is empty: give a text or at least one id")
    rows = []
    for index, row in enumerate(prompt):
        if not isinstance(row, (str, list, tuple)):
            raise ValueError(f"prompt row {index} is {row!r}, neither text nor ids")
        if not len(row):
            raise ValueError(f"prompt row {index} is empty: give at least one token")
        if isinstance(row, str):
            rows.append(tokenizer.encode(row))
            if not rows[-1]:
                raise ValueError(
                    f"prompt row {index}, {row!r}, has no tokens: give a text that has"
                )
            continue
        row = [_plain(token) for token in row]
        for token in row:
            if not isinstance(token, int) or isinstance(token, bool):
                raise ValueError(f"prompt row {index} has {token!r}, which is no id")
        rows.append(row)
    return rows


_ARRAYS = (np.ndarray, np.generic, jax.Array)


def _plain(value: Any) -> Any:
    """Arrays and their elements, numpy's and jax's, as lists and Python numbers."""
    return value.tolist() if isinstance(value, _ARRAYS) else value


def from_rows(
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    row_ids: Sequence[int] | None = None,
    holes: Sequence[Sequence[bool]] | None = None,
    pad_to: int | None = None,
    model: Model | None = None,
    context: Any = None,
) -> Prompt:
    """A Prompt from B rows of ids, right-padded to the longest or to `pad_to`.

    `max_new_tokens` is the number of tokens to generate, one for all or one a row;
    `holes` marks prompt positions to fill; `row_ids` (default 0, 1, ...) name each
    row's noise. With `model` the ids are checked against its vocabulary.
    Raises ValueError.
    """
    if not len(rows):
        raise ValueError("rows is empty: pass at least one prompt")
    lengths = np.array([len(row) for row in rows], np.int32)
    width = max(int(lengths.max()), 1) if pad_to is None else pad_to
    if width < lengths.max():
        raise ValueError(f"{pad_to=} is shorter than the longest row, {lengths.max()}")
    tokens = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        limit = np.iinfo(np.int32).max if model is None else model.vocab_size
        tokens[index, : len(row)] = _checked(row, f"row {index}", limit)
    limits = np.broadcast_to(_whole("max_new_tokens", max_new_tokens), lengths.shape)
    if limits.min() < 1:
        raise ValueError(f"max_new_tokens={limits.min()} must be at least 1")
    masked = None
    if holes is not None:
        masked = np.zeros(tokens.shape, bool)
        for index, (row, hole) in enumerate(zip(rows, holes, strict=True)):
            if len(row) != len(hole):
                raise ValueError(
                    f"holes[{index}] has {len(hole)} entries for {len(row)} tokens"
                )
            masked[index, : len(hole)] = hole
    ids = np.arange(len(rows)) if row_ids is None else _whole("row_ids", row_ids)
    if len(ids) != len(rows):
        raise ValueError(f"{len(ids)} row_ids for {len(rows)} rows")
    return Prompt(
        tokens=jnp.asarray(tokens),
        lengths=jnp.asarray(lengths),
        row_ids=jnp.asarray(ids, jnp.int32),
        max_new_tokens=jnp.asarray(limits),
        masked=None if masked is None else jnp.asarray(masked),
        context=context,
    )


def _whole(name: str, value: Any) -> np.ndarray:
    """`value`, one or several, as int32; ValueError for what is none."""
    array = np.asarray(value)
    limits = np.iinfo(np.int32)
    if array.dtype.kind not in "iu" or (
        array.size and not limits.min <= array.min() <= array.max() <= limits.max
    ):
        raise ValueError(f"{name}={value} must be whole numbers of 32 bits")
    return array.astype(np.int32)


def _checked(row: Any, name: str, limit: int) -> np.ndarray:
    """Ids of a row as an array; ValueError for what is no id in [0, limit)."""
    # Python's own numbers: a cast to 64 bits would fail on, or wrap, a larger one.
    ids = np.asarray(row).tolist() if hasattr(row, "dtype") else row
    found = []
    for token in ids:
        try:
            found.append(operator.index(token))
        except TypeError:
            raise ValueError(f"{name} has {token!r}, which is no id") from None
        if isinstance(token, (bool, np.bool_)):
            raise ValueError(f"{name} has {token!r}, which is no id")
        if not 0 <= found[-1] < limit:
            raise ValueError(f"{name} has id {found[-1]}, outside [0, {limit})")
    return np.array(found, np.int32)


def row_ids(rows: Sequence[Sequence[int]]) -> list[int]:
    """A name for each row's noise, made of the row alone.

    A hash of its ids and its number among equal rows, in [0, 2**31): a prompt's answer
    is then the same in any company, and equal prompts get different ones.
    """
    seen: collections.Counter = collections.Counter()
    found = []
    for row in rows:
        text = ",".join(str(int(token)) for token in row)
        digest = hashlib.sha256(f"{seen[text]}:{text}".encode()).digest()
        found.append(int.from_bytes(digest[:4], "big") >> 1)
        seen[text] += 1
    return found


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


def pinned_behind_holes(prompt: Prompt) -> Array:
    """int32 [B]: tokens of text behind the first hole, which a model did not choose.

    Where it is not zero, part of an answer is given and the rest is asked for around
    it; a model trained to refuse by its first words is not asked for them.
    """
    if prompt.masked is None:
        return jnp.zeros_like(prompt.lengths)
    place = jnp.arange(prompt.tokens.shape[1])[None]
    is_text = (place < prompt.lengths[:, None]) & ~prompt.masked
    is_behind = jnp.cumsum(prompt.masked, 1) > 0
    return (is_text & is_behind).sum(1, dtype=jnp.int32)


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
