"""Where the rows of the masked family stand: their block, what is done, what counts."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdecode.families import masked_calls as calls
from pdecode.families import rows


def advance(plan: Any, new: Any, old: Any, active: Array) -> Any:
    """The state at the block of its leftmost open position.

    A block that was filled stays for up to `plan.settle` steps more, the first one
    anyway and the others while edits change it.
    """
    block = block_of(plan, new)
    settling = jnp.zeros_like(old.settling)
    if plan.settle:
        is_full = (block != old.block) | ~new.masked.any(1)
        changed = (new.tokens != old.tokens).any(1) | (old.settling == 0)
        stays = active & is_full & changed & (old.settling < plan.settle)
        block = jnp.where(stays, old.block, block)
        settling = jnp.where(stays, old.settling + 1, 0)
    moved = block != old.block
    return new._replace(
        block=block,
        num_initial=jnp.where(moved, num_open(plan, new, block), old.num_initial),
        step=jnp.where(moved, 0, old.step + active),
        settling=jnp.where(active, settling, old.settling),
    )


def done(plan: Any, state: Any) -> Array:
    """bool [B]."""
    if plan.runs_on and plan.last_turn is not None:
        return state.failed | (state.turn > plan.last_turn)
    is_complete = rows.is_complete(progress(state), plan.model.eos_ids)
    return state.failed | (is_complete & (state.settling == 0))


def block_of(plan: Any, state: Any) -> Array:
    """int32 [B]: the block of the leftmost open position; as it was if none is open."""
    left = jnp.argmax(state.masked, 1).astype(jnp.int32)
    block = jax.vmap(plan.blocks.index)(left[:, None], calls.bare_rows(state))[:, 0]
    return jnp.where(state.masked.any(1), block, state.block)


def num_open(plan: Any, state: Any, block: Array) -> Array:
    """int32 [B]: open positions of `block`."""
    place = jnp.broadcast_to(
        jnp.arange(state.tokens.shape[1], dtype=jnp.int32), state.tokens.shape
    )
    index = jax.vmap(plan.blocks.index)(place, calls.bare_rows(state))
    return (state.masked & (index == block[:, None])).sum(1, dtype=jnp.int32)


def progress(state: Any) -> rows.Canvas:
    """What the rows have decided."""
    committed = state.generated & ~state.masked
    return rows.Canvas(
        state.tokens, committed, state.masked, state.prompt_end, state.end
    )


def num_counted(plan: Any, state: Any) -> Array:
    """int32 [B]: filled positions that count."""
    return rows.num_counted(progress(state), plan.model.eos_ids)
