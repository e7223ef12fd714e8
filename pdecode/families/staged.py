"""Values from coarse to fine: a pass of a transformer a stage, and a short flow.

Multistage continuous autoregression (E-CAR): Yuan et al., 2024, arXiv:2412.14170. All
of a stage is drawn at once: the transformer says from the stages before where each
patch is bound for, and the patches move along the stage's slice of the flow. What a
stage ends with is grown, and noise is added to begin the next (`rules.pyramids`).
Values are no tokens, so this is no `Decoder`.

Exact, in the limit of many steps, where the velocity is: then the last stage has the
data's law (tests/test_staged.py, on Gaussians). A head that moves each patch by itself
is lossy by their independence within a stage.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdecode import rng
from pdecode.contracts import Params
from pdecode.models import frames
from pdecode.models.staged import Staged
from pdecode.rules import pyramids


class Drawn(NamedTuple):
    """The result."""

    values: Array  # float32 [B, H, W]
    num_calls: int  # of the transformer
    num_head_calls: int  # of the flow head


def drawn(
    net: Staged, params: Params, classes: Array, keys: Array, *, num_steps: int
) -> Drawn:
    """An image of each class int32 [B], `num_steps` of Heun's method a stage.

    Keys [B] of rows. Cost: a call a stage, of the lanes of the stages so far, and
    2 * `num_steps` calls of the head. ValueError for fewer than one step, and for
    slices that do not follow each other.
    """
    if num_steps < 1:
        raise ValueError(f"{num_steps=} must be at least 1")
    pyramids.check(net.slices)
    patch, grown, x = net.grid.patch, [], None
    for stage, (begin, _) in enumerate(net.slices):
        noise = _noise(keys, stage, net.grid.sides()[stage])
        if x is None:
            x = noise
        else:
            end = net.slices[stage - 1][1]
            grown.append(pyramids.grown(x))
            x = pyramids.lift(x, end, begin, noise)
        told = net.conditions(params, classes, grown)
        x = frames.unpatched(
            _moved(net, params, told, frames.patches(x, patch), num_steps), patch
        )
    assert x is not None, "`check` asks for a slice"
    return Drawn(x, len(net.slices), 2 * num_steps * len(net.slices))


def _moved(net: Staged, params, told: Array, x: Array, num_steps: int) -> Array:
    """Patches [B, N, P * P] at the end of their slice."""
    size = 1 / num_steps

    def turn(x: Array, number: Array):
        time = jnp.full(x.shape[:2], number * size)
        here = net.velocity(params, told, x, time)
        ahead = net.velocity(params, told, x + size * here, time + size)
        return x + size / 2 * (here + ahead), None

    return jax.lax.scan(turn, x, jnp.arange(num_steps, dtype=x.dtype))[0]


def _noise(keys: Array, stage: int, side: int) -> Array:
    """[B, side, side] from N(0, I), of a row and a stage."""
    places = jnp.full((keys.shape[0], 1), stage)
    own = rng.noise(keys, rng.TRANSPORT, places)[:, 0]
    return jax.vmap(lambda key: jax.random.normal(key, (side, side)))(own)
