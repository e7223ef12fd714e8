"""Projections that read one input as one product: fewer reads, larger matrices.

A layer's queries, keys and values are products with the same normed stream, and so are
the two sides of a gated MLP. Their kernels lie side by side in one matrix each:

    attention/query, key, value    [E, H D], [E, Hkv D] twice -> qkv [E, (H + 2 Hkv) D]
    mlp/gate, up                   [E, F] twice               -> gate_up [E, 2 F]

Which of the two a layer computes is said by its parameters alone: a model, its
configuration and everything around them stay what they are. Columns are the same
numbers in the same order, so a result differs by no more than the order in which a
matrix product sums. On a GPU, where a product of one row is read by one small kernel
each, a call of one token takes 0.45 of its time (H200, bfloat16, 8 billion
parameters); on a CPU nothing is gained.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pdecode.contracts import Params

QKV, GATE_UP = "qkv", "gate_up"
_SIDES = {QKV: ("query", "key", "value"), GATE_UP: ("gate", "up")}


def fused(params: Params) -> Params:
    """`params` with the projections of every layer joined; equal parts are shared.

    A layer is a `layers.Block` or alike: a dict with "attention" and "mlp" in it. What
    is joined already stays, and so do mixtures of experts (their shared MLP is joined)
    and networks whose layers are built otherwise: DiffusionGemma, the second pass of
    ARPG, draft heads.
    """
    return {name: _layer(part) for name, part in params.items()}


def fused_in_turn(params: Params) -> Params:
    """`fused`, which empties `params`: one layer at a time is in memory twice."""
    return {name: _layer(params.pop(name)) for name in list(params)}


def is_fused(params: Params) -> bool:
    """Whether a layer of `params` has its projections joined."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = {getattr(key, "key", None) for path, _ in leaves for key in path}
    return not names.isdisjoint(_SIDES)


def by_default(mesh: Mesh | None) -> bool:
    """Whether a model is loaded with projections joined: on a GPU, all on one device.

    Over a tensor axis columns are split, and each device needs its own part of every
    projection.
    """
    return mesh is None and jax.default_backend() == "gpu"


def refuse(params: Params, what: str) -> None:
    """ValueError, with the way out, where `what` reads projections one by one."""
    if is_fused(params):
        raise ValueError(
            f"{what} needs queries, keys and values by themselves, but its parameters "
            "have them fused: load the model with fused=False (--no-fused)"
        )


def _layer(part: Any) -> Any:
    if not isinstance(part, dict) or "attention" not in part or "mlp" not in part:
        return part
    mlp = _joined(part["mlp"], GATE_UP)
    if "shared" in mlp:
        mlp["shared"] = _joined(mlp["shared"], GATE_UP)
    return {**part, "attention": _joined(part["attention"], QKV), "mlp": mlp}


def _joined(branch: dict, name: str) -> dict:
    """`branch` with the denses of `name` as one, if it has them all."""
    sides = [branch.get(side) for side in _SIDES[name]]
    # Experts are arrays [N, E, F], not denses.
    if not all(isinstance(side, dict) for side in sides):
        return dict(branch)
    rest = {key: leaf for key, leaf in branch.items() if key not in _SIDES[name]}
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *sides)
    return {**rest, name: whole}
