"""Optimizers by what a parameter is, and the learning rate of every step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdecode.contracts import Params
from pdecode.train.config import ROLES, TrainConfig

# Orthogonalised by Muon; the rest is Adam's.
_MATRICES = ("matrix", "expert")


class Group(NamedTuple):
    """The parameters of one role, and what is done with them."""

    role: str
    num_tensors: int
    num_params: int
    rule: str  # "adam" or "muon"
    weight_decay: float


def role(path: tuple[str, ...], rank: int) -> str:
    """What the parameter at `path` is to an optimizer, by its name.

    Raises ValueError for a name that says nothing: a parameter never lands in a group
    by chance.
    """
    last = path[-1]
    if any("norm" in name for name in path):
        return "norm"
    if last == "bias":
        return "bias"
    if any(name.startswith(("adapter", "lora")) for name in path):
        return "adapter"
    if last in ("embed", "positions"):
        return "embedding"
    if last == "head":
        return "head"
    if rank == 3 and "mlp" in path:
        return "expert"
    if rank >= 2:  # kernels, and kernels stacked by head
        return "matrix"
    raise ValueError(
        f"parameter {'/'.join(path)} of {rank} dimensions has no role; known names: "
        "see pdecode.train.optimizers.role"
    )


def roles(params: Params) -> Any:
    """The role of every parameter, as a tree of names."""

    def named(path, leaf):
        return role(tuple(str(key.key) for key in path), leaf.ndim)

    return jax.tree_util.tree_map_with_path(named, params)


def groups(config: TrainConfig, params: Params) -> list[Group]:
    """Every role that `params` (arrays or shapes) has, in the order of ROLES."""
    pairs = list(zip(jax.tree.leaves(roles(params)), jax.tree.leaves(params)))
    found = []
    for each in ROLES:
        leaves = [leaf for name, leaf in pairs if name == each]
        if leaves:
            count = sum(leaf.size for leaf in leaves)
            group = Group(each, len(leaves), count, _rule(config, each), 0.0)
            found.append(group._replace(weight_decay=_decay(config, each)))
    return found


def learning_rate(config: TrainConfig) -> Callable[[Any], jax.Array]:
    """Step, from zero -> its learning rate, float32: a warm-up, then the schedule.

    The warm-up rises linearly to the peak in `warmup_steps` steps, none of them zero.
    The last step of the run has `final_fraction` of the peak, exactly.
    """
    peak, last = config.learning_rate, config.learning_rate * config.final_fraction
    is_cosine = config.schedule == "cosine"
    num_falling = (
        config.steps - config.warmup_steps if is_cosine else config.decay_steps
    )

    def rate(step):
        count = jnp.asarray(step, jnp.float32) + 1.0
        rising = peak * count / max(config.warmup_steps, 1)
        fallen = count - (config.steps - num_falling)
        share = jnp.clip(fallen / max(num_falling, 1), 0.0, 1.0)
        if is_cosine:
            share = (1 - jnp.cos(jnp.pi * share)) / 2
        falling = peak + (last - peak) * share
        return jnp.where(count <= config.warmup_steps, rising, falling)

    return rate


def make(config: TrainConfig) -> optax.GradientTransformation:
    """Clipped AdamW; or Muon (Jordan, 2024) for matrices and experts, Adam elsewhere.

    Muon's updates are scaled to AdamW's size (Liu et al., 2025, arXiv:2502.16982), so
    that one learning rate serves both. Weight decay is for the roles in
    `config.decayed`, whatever rule they follow. The changes are those of a rate of one:
    the step multiplies them by its own.
    """

    def follow(name):
        decay = _decay(config, name)
        if _rule(config, name) == "muon":
            return optax.contrib.muon(
                1.0,
                weight_decay=decay,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=lambda params: jax.tree.map(
                    # Leading dimensions are experts or heads, each its own matrix.
                    lambda leaf: optax.contrib.MuonDimensionNumbers(
                        reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1
                    ),
                    params,
                ),
            )
        return optax.adamw(
            1.0,
            b1=config.b1,
            b2=config.b2,
            weight_decay=decay,
            nesterov=config.optimizer == "muon",
        )

    update = optax.partition({name: follow(name) for name in ROLES}, roles)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _rule(config: TrainConfig, name: str) -> str:
    return "muon" if config.optimizer == "muon" and name in _MATRICES else "adam"


def _decay(config: TrainConfig, name: str) -> float:
    return config.weight_decay if name in config.decayed else 0.0


def average(ema: Params, params: Params, decay: float) -> Params:
    """The moving average of parameters after one more step."""
    return jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new.astype(jnp.float32),
        ema,
        params,
    )
