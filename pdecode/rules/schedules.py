"""Schedules of the masked family, as functions of progress or time in [0, 1]."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
    "ALPHAS",
    "MASK_SCHEDULES",
    "Ancestral",
    "alpha",
    "ancestral",
    "mask_fraction",
    "masks_left",
    "max_remask",
    "quota",
    "shares",
    "shifted",
    "steps_per_block",
    "unfilled",
]

MASK_SCHEDULES = ("cosine", "linear", "square", "cubic", "log", "exp")
ALPHAS = ("linear", "cosine", "square")


def mask_fraction(kind: str, progress: Array, num_open: Array) -> Array:
    """MaskGIT's gamma: the fraction still masked at `progress`, clipped to [1e-6, 1].

    `num_open` is the count at the start, for the "log" and "exp" schedules.
    """
    bits = jnp.log2(jnp.maximum(num_open.astype(jnp.float32), 2.0))
    safe = jnp.maximum(progress, 1e-6)
    fraction = {
        "cosine": lambda: jnp.cos(math.pi / 2 * progress),
        "linear": lambda: 1 - progress,
        "square": lambda: 1 - progress**2,
        "cubic": lambda: 1 - progress**3,
        "log": lambda: -jnp.log2(safe) / bits,
        "exp": lambda: 1 - jnp.exp2(-bits * (1 - progress)),
    }
    if kind not in fraction:
        raise ValueError(f"mask schedule {kind!r} must be one of {MASK_SCHEDULES}")
    return jnp.clip(fraction[kind](), 1e-6, 1.0)


def masks_left(
    kind: str, step: Array, steps: int, num_initial: Array, num_open: Array
) -> Array:
    """How many stay open after `step` of `steps` by `mask_fraction`; none at last.

    At least one and one less than are open now, as in MaskGIT.
    """
    fraction = mask_fraction(kind, (step + 1) / steps, num_initial)
    wanted = jnp.floor(num_initial * fraction).astype(jnp.int32)
    left = jnp.maximum(1, jnp.minimum(num_open - 1, wanted))
    return jnp.where(step + 1 >= steps, 0, left)


def alpha(kind: str, time: Array) -> Array:
    """Probability that a token is unmasked at `time`: 1 at time 0, 0 at time 1."""
    if kind == "linear":
        return 1 - time
    if kind == "cosine":
        return 1 - jnp.cos(math.pi / 2 * (1 - time))
    if kind == "square":
        return 1 - time**2
    raise ValueError(f"alpha {kind!r} must be one of {ALPHAS}")


class Ancestral(NamedTuple):
    """Per-step constants of ancestral sampling on a grid, each float32 [N]."""

    alpha_from: Array  # alpha at the time the step leaves
    alpha_to: Array  # alpha at the time it reaches
    remask: Array  # sigma: probability that a filled position is reopened

    @property
    def commit(self) -> Array:
        """Probability that an open position is filled in each step."""
        gained = self.alpha_to - (1 - self.remask) * self.alpha_from
        room = jnp.where(self.alpha_from < 1, 1 - self.alpha_from, 1)
        return jnp.clip(gained / room, 0, 1)


def ancestral(kind: str, steps: int) -> Ancestral:
    """The uniform grid from time 1 to 0 in `steps` steps, nothing reopened."""
    time = jnp.asarray(np.linspace(1, 0, steps + 1), jnp.float32)
    level = alpha(kind, time)
    return Ancestral(level[:-1], level[1:], jnp.zeros(steps))


def max_remask(schedule: Ancestral) -> Array:
    """ReMDM's bound: sigma may not exceed min(1, (1 - alpha_s) / alpha_t)."""
    safe = jnp.where(schedule.alpha_from > 0, schedule.alpha_from, 1)
    bound = jnp.minimum(1, (1 - schedule.alpha_to) / safe)
    return jnp.where(schedule.alpha_from > 0, bound, 1)


def quota(num_open: Array, step: Array, steps: int | Array) -> Array:
    """How many of `num_open` to commit at `step` of `steps`: equal shares, the
    remainder in the first steps."""
    return num_open // steps + (step < num_open % steps)


def shifted(progress: Array, shift: Array | float) -> Array:
    """LaViDa's share decided after `progress` of the steps: below 1, a late start."""
    return shift * progress / (1 + (shift - 1) * progress)


def shares(decided: Callable[[Array], Array], num_open: Array, steps: int) -> Array:
    """int32 [steps + 1]: how many of `num_open` each step commits, then nothing.

    `decided(progress)` rises from 0 to 1. Counts are rounded; with no more steps than
    positions each step has at least one, and the sum is `num_open`.
    """
    place = np.arange(steps + 1, dtype=np.float32)
    wanted = jnp.round(num_open * decided(jnp.asarray(place / steps)))
    # A step that takes one is level here: what lies below an earlier step is raised.
    spare = jnp.clip(wanted - place, 0, jnp.maximum(num_open - steps, 0))
    total = jnp.minimum(jax.lax.cummax(spare) + place, num_open)
    total = total.at[-1].set(num_open)
    return jnp.diff(total, append=total[-1:]).astype(jnp.int32)


def unfilled(num_open: Array, step: Array, steps: int) -> Array:
    """How many of `num_open` are open after `step` of `steps`, by `quota`."""
    done = jnp.minimum(step + 1, steps)
    filled = done * (num_open // steps) + jnp.minimum(done, num_open % steps)
    return num_open - filled


def steps_per_block(max_new_tokens: int, steps: int, block_length: int) -> int:
    """Each block's share of `steps`; ValueError if uneven."""
    if max_new_tokens % block_length:
        raise ValueError(
            f"block_length={block_length} must divide max_new_tokens={max_new_tokens}"
        )
    num_blocks = max_new_tokens // block_length
    if steps % num_blocks:
        raise ValueError(
            f"steps={steps} must be a multiple of the {num_blocks} blocks of "
            f"{block_length} in {max_new_tokens} tokens"
        )
    return steps // num_blocks
