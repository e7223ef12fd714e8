"""What the families share: prompt layout, prefill, where a row ends, what counts."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode import prompts
from pdecode.contracts import (
    Generation,
    Model,
    Prompt,
    StepInfo,
)


class Layout(NamedTuple):
    """A prompt in the buffer that will hold its continuation."""

    tokens: Array  # int32 [B, L]  zero behind the text
    is_text: Array  # bool [B, L]
    end: Array  # int32 [B]  one past the last position asked for


def layout(prompt: Prompt, max_new_tokens: int, model: Model, room: int = 0) -> Layout:
    """Lays `prompt` out for `max_new_tokens` more, and `room` positions behind those.

    Raises ValueError if `model` has fewer positions.
    """
    batch, width = prompt.tokens.shape
    length = prompts.buffer_length(prompt, max_new_tokens + room, model)
    is_text = jnp.arange(length)[None] < prompt.lengths[:, None]
    tokens = jnp.zeros((batch, length), jnp.int32).at[:, :width].set(prompt.tokens)
    end = prompt.lengths + jnp.minimum(prompt.max_new_tokens, max_new_tokens)
    return Layout(jnp.where(is_text, tokens, 0), is_text, end)


def no_holes(prompt: Prompt, family: str) -> None:
    """Raises ValueError if positions of the prompt are to be filled."""
    if prompt.masked is not None:
        raise ValueError(
            f"the prompt has holes to fill: {family} only continues a text; use a "
            "method of the masked family"
        )


def prefill_info(model: Model, prompt: Prompt, *, drop: int = 0, **more) -> StepInfo:
    """The StepInfo of `prompts.prefill`, with other counters as given."""
    called = jnp.where(prompt.lengths > drop, model.num_calls, 0)
    width = max(prompt.tokens.shape[1] - drop, 0)
    return info(
        called,
        num_calls=called,
        num_query_tokens=called * (prompt.lengths - drop),
        num_query_tokens_computed=jnp.full_like(called, width * model.num_calls),
        **more,
    )


def info(like: Array, **counts: Array) -> StepInfo:
    """A StepInfo of zeros [B] but for `counts`; `like` has the shape."""
    zero = jnp.zeros_like(like, jnp.int32)
    blank = dict.fromkeys(StepInfo._fields, zero)
    return StepInfo(**{**blank, "num_dispatches": jnp.zeros((), jnp.int32), **counts})


def is_eos(tokens: Array, eos_ids: tuple[int, ...]) -> Array:
    """bool, of the shape of `tokens`."""
    found = jnp.zeros(tokens.shape, bool)
    for token in eos_ids:
        found |= tokens == token
    return found


class Canvas(NamedTuple):
    """A row's buffer with some positions decided: what its progress is told from."""

    tokens: Array  # int32 [B, L]
    committed: Array  # bool [B, L]  generated and decided, holes of the prompt included
    open: Array  # bool [B, L]  to be decided
    prompt_end: Array  # int32 [B]
    end: Array  # int32 [B]


def first_eos(canvas: Canvas, eos_ids: tuple[int, ...]) -> tuple[Array, Array]:
    """Position [B] of the first EOS that ends a row (else `end`), and if there is one.

    Only committed tokens in [prompt_end, end) count: an EOS in the prompt or in one of
    its holes ends nothing.
    """
    place = jnp.arange(canvas.tokens.shape[1])[None]
    ends = is_eos(canvas.tokens, eos_ids) & canvas.committed
    ends &= (place >= canvas.prompt_end[:, None]) & (place < canvas.end[:, None])
    found = ends.any(1)
    return jnp.where(found, jnp.argmax(ends, 1).astype(jnp.int32), canvas.end), found


def num_counted(canvas: Canvas, eos_ids: tuple[int, ...]) -> Array:
    """Filled positions [B] up to the first EOS or the end: the rest never counts."""
    last, found = first_eos(canvas, eos_ids)
    place = jnp.arange(canvas.tokens.shape[1])[None]
    inside = place < (last + found)[:, None]
    return (canvas.committed & inside).sum(1, dtype=jnp.int32)


def is_complete(canvas: Canvas, eos_ids: tuple[int, ...]) -> Array:
    """bool [B]: nothing is open before the row's first EOS or its end."""
    last, _ = first_eos(canvas, eos_ids)
    place = jnp.arange(canvas.tokens.shape[1])[None]
    return ~(canvas.open & (place < last[:, None])).any(1)


def generation(
    canvas: Canvas, log_probs: Array, failed: Array, eos_ids: tuple[int, ...]
) -> Generation:
    """The result; `failed` (bool [B]) marks rows that ended by what is no number.

    A row's length ends at its first EOS and at the first position still open.
    """
    last, saw_eos = first_eos(canvas, eos_ids)
    place = jnp.arange(canvas.tokens.shape[1])[None]
    is_gap = canvas.open & (place >= canvas.prompt_end[:, None])
    gap = jnp.where(is_gap, place, canvas.tokens.shape[1]).min(1)
    reached = jnp.minimum(last, gap.astype(jnp.int32))
    return Generation(
        tokens=canvas.tokens,
        start=canvas.prompt_end,
        lengths=reached - canvas.prompt_end,
        log_probs=log_probs,
        stopped_by=stopped_by(saw_eos & (reached == last), failed),
        committed=canvas.committed & (place < canvas.end[:, None]),
    )


def stopped_by(saw_eos: Array, failed: Array) -> Array:
    """int32 [B], as in `Generation.stopped_by`, of a row that is done."""
    return jnp.where(failed, 3, saw_eos).astype(jnp.int32)
