"""Coarse-to-fine values: a transformer over stages, and a head that is a flow.

E-CAR (Yuan et al., 2024, arXiv:2412.14170). A stage is an image at its resolution, cut
into patches, one a lane. The transformer reads how the stages before ended, each grown
to the next one's size, and gives every lane of a stage its condition in one pass; a
small MLP on that says where a patch moves (the flow head). Patches of a stage move
independently of each other, given how the stages before ended.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode.contracts import Params, Visibility
from pdecode.models import frames, transformer
from pdecode.models import layers as parts
from pdecode.models.config import Config

_NUM_WAVES = 8  # cosines, and sines, of the time within a slice


class Grid(NamedTuple):
    """Sizes of the stages, each twice the one before; hashable."""

    side: int  # cells of a row of the last one
    patch: int  # cells of a row of a patch
    num_stages: int

    def sides(self) -> list[int]:
        """Of each stage, the coarsest first."""
        most = self.num_stages - 1
        return [self.side >> (most - stage) for stage in range(self.num_stages)]

    def lanes(self) -> list[int]:
        """Patches of each stage."""
        return [(side // self.patch) ** 2 for side in self.sides()]


class Staged(NamedTuple):
    """What `families.staged` draws with; hashable."""

    # (params, classes int32 [B], grown) -> [B, N, E] of the last stage's lanes; `grown`
    # [B, H, W] are the ends of the stages before, each grown to the next one's size.
    conditions: Callable[[Params, Array, Sequence[Array]], Array]
    # (params, conditions [B, N, E], x [B, N, P * P], time [B, N]) -> dx/dt, as x
    velocity: Callable[[Params, Array, Array, Array], Array]
    grid: Grid
    slices: tuple[tuple[float, float], ...]  # `rules.pyramids.Slices`, one a stage
    name: str = "staged"


def check(config: Config, grid: Grid) -> None:
    """ValueError for a grid that does not come out even, or has too many lanes."""
    coarse, rest = divmod(grid.side, 1 << (grid.num_stages - 1))
    if grid.patch < 1 or rest or not coarse or coarse % grid.patch:
        raise ValueError(
            f"side={grid.side} halved {grid.num_stages - 1} times must leave whole "
            f"patches of patch={grid.patch}"
        )
    limit = config.max_positions
    if limit is not None and sum(grid.lanes()) > limit:
        raise ValueError(
            f"{sum(grid.lanes())} patches exceed model.max_positions={limit}"
        )


def init(config: Config, grid: Grid, key: Array) -> Params:
    """Those of a transformer, whose tokens are classes, and "patches" and "flow"."""
    keys = jax.random.split(key, 6)
    size, width = grid.patch**2, config.width

    def dense(index: int, inner: int, outer: int) -> Params:
        made = parts.Dense(outer, True, config.dtype)
        return made.init(keys[index], jnp.zeros((1, 1, inner)))["params"]

    return {
        **transformer.init(config, keys[0]),
        "patches": dense(1, size, width),
        "flow": {
            "condition": dense(2, width, width),
            "opening": dense(3, size + 2 * _NUM_WAVES, width),
            "middle": dense(4, width, width),
            "closing": dense(5, width, size),
        },
    }


@functools.cache
def make_net(config: Config, grid: Grid, slices: tuple) -> Staged:
    """The record of a trained network; equal arguments give the same object."""

    def conditions(params: Params, classes: Array, grown: Sequence[Array]) -> Array:
        tokens, visible, extra = lanes_of(config, grid, params, classes, grown)
        output = transformer.forward(
            config, params, tokens, visible=visible, extra=extra, train=False
        )
        return output.hidden[:, -grid.lanes()[len(grown)] :]

    return Staged(
        conditions,
        functools.partial(velocity, config),
        grid,
        slices,
        f"staged {config.name}",
    )


def lanes_of(
    config: Config, grid: Grid, params: Params, classes: Array, grown: Sequence[Array]
) -> tuple[Array, Visibility, Array]:
    """What the transformer reads of the first stages, one more than there are `grown`.

    Tokens int32 [B, N], what each lane sees, and what is added to it [B, N, E]. A lane
    sees those of its own stage and of earlier ones.
    """
    lanes = grid.lanes()[: len(grown) + 1]
    stage = np.repeat(np.arange(len(lanes)), lanes)
    batch, number = classes.shape[0], len(stage)
    blank = jnp.zeros((batch, lanes[0], grid.patch**2))
    patches = jnp.concatenate(
        [blank, *(frames.patches(each, grid.patch) for each in grown)], 1
    )
    extra = parts.applied(
        parts.Dense(config.width, True, config.dtype), params["patches"], patches
    )
    tokens = jnp.broadcast_to(classes[:, None], (batch, number))
    among = jnp.asarray(stage[None, :] <= stage[:, None])
    nowhere = jnp.zeros((batch, number), jnp.int32)
    among = jnp.broadcast_to(among, (batch, number, number))
    return tokens, Visibility(nowhere, nowhere, among=among), extra


def velocity(config: Config, params: Params, told: Array, x: Array, time: Array):
    """dx/dt [B, N, P * P] of patches at a time in [0, 1] of their slice."""

    def dense(name: str, value: Array, width: int = config.width) -> Array:
        made = parts.Dense(width, True, config.dtype)
        return parts.applied(made, params["flow"][name], value)

    turns = time[..., None] * (np.pi * np.arange(1, 1 + _NUM_WAVES))[None, None]
    waves = jnp.concatenate([jnp.cos(turns), jnp.sin(turns)], -1)
    opened = dense("opening", jnp.concatenate([x, waves], -1))
    hidden = jax.nn.silu(opened + dense("condition", told))
    hidden = jax.nn.silu(hidden + dense("middle", hidden))
    return dense("closing", hidden, x.shape[-1])
