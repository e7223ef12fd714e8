"""The canvases of `canvas_chain` as one tree, for models that attend by blocks.

Canvases of one decode differ in the active block alone, and what lies before it is
final: its keys are kept. A call has a branch of block lanes for every canvas,

    final blocks | branch 0 | branch 1 | branch 2 | the next block

and the next block behind the branch that fills its own block up, so that no call is
needed to begin it. A lane sees the final blocks and its own branch; those of the next
block see that one branch, and each other. Branches are stored behind the canvas; the
one that a block ends with is moved to its place.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.cache import UNSTORED
from pdecode.contracts import Model, Prompt, Query, SlotRun, Visibility
from pdecode.kernels.head import api as vocab_head


def fits(model: Model, prompt: Prompt) -> bool:
    """Whether canvases of `model` can be branches: slots need not be positions.

    A prompt with holes has blocks that are final and were never stored.
    """
    is_free = not model.is_shifted and not model.slides
    return model.attention == "block_causal" and is_free and prompt.masked is None


def evaluate(plan: Any, params, keys, state: Any, drafts: Any):
    """(guess, score, cache): as `canvas_chain.evaluate`, told where it may be read."""
    batch, size, length = drafts.tokens.shape
    positions, slots, visible, is_lane = lanes(plan, state, drafts)
    branch = jnp.clip(positions, 0, length - 1).reshape(batch, size + 1, -1)
    # The next block stands behind the last branch that differs; any has its tokens.
    of = jnp.concatenate([drafts.tokens, drafts.tokens[:, -1:]], 1)
    tokens = jnp.take_along_axis(of, branch, 2).reshape(batch, -1)
    query = Query(tokens, jnp.clip(positions, 0, length - 1), slots, visible)
    output, cache = plan.model.apply(params["model"], query, state.cache)
    # The noise of the static step that would evaluate the branch's canvas.
    ahead = jnp.arange(1, size + 1, dtype=jnp.int32)[None]
    turn = state.turn[:, None] + jnp.where(state.is_new[:, None], 0, ahead)
    filled = jnp.argmax(_is_filled(plan, state, drafts), 1)[:, None]
    turn = jnp.concatenate([turn, jnp.take_along_axis(turn, filled, 1)], 1)
    flat = branch.reshape(batch * (size + 1), -1)
    places = functools.partial(
        rng.noise, jnp.repeat(keys, size + 1, 0), rng.TARGET, flat,
        round=turn.reshape(-1),
    )  # fmt: skip
    found = vocab_head.statistics(
        plan.model.head(params["model"]),
        output.hidden.reshape(*flat.shape, -1),
        ("token", "log_prob"), plan.sampling, places,
    )  # fmt: skip

    def spread(values: Array) -> Array:
        """[B, D, L] of [B * (D + 1), n]: the next block's go to every canvas."""
        values = values.reshape(batch, size + 1, -1)
        where = jnp.where(is_lane, branch, length)
        nth, row = jnp.arange(size)[None, :, None], jnp.arange(batch)[:, None, None]
        blank = jnp.zeros((batch, size, length), values.dtype)
        blank = blank.at[row, nth, where[:, :-1]].set(values[:, :-1], mode="drop")
        return blank.at[row, nth, where[:, -1:]].set(values[:, -1:], mode="drop")

    score = spread(found.log_prob.astype(jnp.float32))
    return spread(found.token), score, cache


def lanes(plan: Any, state: Any, drafts: Any):
    """(positions [B, Q], slots, Visibility, bool [B, D + 1, n]: lanes inside the row).

    Q = (D + 1) * n lanes, branch by branch and then the next block.
    """
    batch, size, length = drafts.tokens.shape
    n = plan.model.block_len
    first = _first(plan, state)
    number = jnp.arange((size + 1) * n, dtype=jnp.int32)[None]
    branch, offset = number // n, number % n
    positions = first[:, None] + offset + jnp.where(branch == size, n, 0)
    filled = _is_filled(plan, state, drafts)
    end = -(-drafts.end[:, :1] // n) * n
    is_lane = (positions < end) & ((branch < size) | filled.any(1, keepdims=True))
    ends_in = jnp.argmax(filled, 1)[:, None, None]
    mine, its = branch[:, :, None], branch[:, None]
    among = ((mine == its) | ((mine == size) & (its == ends_in))) & is_lane[:, None]
    seen = jnp.broadcast_to(first[:, None], positions.shape)
    stored = jnp.broadcast_to(branch < size, positions.shape)
    slots = SlotRun(jnp.full(batch, length, jnp.int32), stored)
    visible = Visibility(jnp.zeros_like(seen), seen, among=among)
    return positions, slots, visible, is_lane.reshape(batch, size + 1, n)


def num_lanes(plan: Any, state: Any, drafts: Any, num_distinct: Array) -> Array:
    """int32 [B]: lanes asked for; the next block's, where there is one to begin."""
    n = plan.model.block_len
    begins = _first(plan, state) + n < drafts.end[:, 0]
    begins &= _is_filled(plan, state, drafts).any(1)
    return n * (num_distinct + begins)


def kept(plan: Any, state: Any, drafts: Any, last: Array, cache: Any) -> Any:
    """The cache with the block that the canvas `last` (int32 [B]) filled up."""
    length, n = drafts.tokens.shape[2], plan.model.block_len
    filled = jnp.take_along_axis(_is_filled(plan, state, drafts), last[:, None], 1)
    offset = jnp.arange(n, dtype=jnp.int32)[None]
    source = length + last[:, None] * n + offset
    target = jnp.where(filled, _first(plan, state)[:, None] + offset, UNSTORED)
    return plan.model.move(cache, source, target)


def _first(plan: Any, state: Any) -> Array:
    """int32 [B]: where the block of the leftmost open position begins."""
    n = plan.model.block_len
    return jnp.argmax(state.canvas.open, 1).astype(jnp.int32) // n * n


def _is_filled(plan: Any, state: Any, drafts: Any) -> Array:
    """bool [B, D]: the canvases that have no open position in that block.

    A row without any open position has no block.
    """
    place = jnp.arange(drafts.open.shape[2], dtype=jnp.int32)
    first = _first(plan, state)[:, None]
    inside = (place[None] >= first) & (place[None] < first + plan.model.block_len)
    is_open = (drafts.open & inside[:, None]).any(2)
    return ~is_open & state.canvas.open.any(1, keepdims=True)
