"""Where each parameter lives on a mesh: logical axes by name, one table to mesh axes.

Following the logical-axis rules of Flax and Megatron-style tensor parallelism (Shoeybi
et al., 2019, arXiv:1909.08053): columns of what opens a branch, rows of what closes it,
experts by expert. An axis that the mesh lacks, or that does not divide a dimension,
leaves that dimension whole.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = {
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
    "embed": "fsdp",
}

_OPENING = {"query", "key", "value"}
_BY_LEAF = {
    "embed": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    "positions": (None, "embed"),
}


def logical_axes(path: tuple[str, ...], rank: int) -> tuple[str | None, ...]:
    """Logical axes of the parameter at `path`, one a dimension."""
    if path[-1] in _BY_LEAF:
        return _BY_LEAF[path[-1]]
    if rank == 3:  # experts [N, in, out]
        closing = path[-1] == "down"
        return ("expert", "mlp", "embed") if closing else ("expert", "embed", "mlp")
    if len(path) < 2 or path[-2] not in _OPENING | {"gate", "up", "out", "down"}:
        return (None,) * rank
    branch = "heads" if path[-2] in _OPENING | {"out"} else "mlp"
    axes = ("embed", branch) if path[-2] not in {"out", "down"} else (branch, "embed")
    return axes if rank == 2 else axes[1:]


def specs(shapes: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of shapes (or arrays)."""

    def place(path, leaf):
        names = tuple(str(key.key) for key in path)
        used: set[str] = set()
        entries = []
        for size, logical in zip(leaf.shape, logical_axes(names, len(leaf.shape))):
            axis = MESH_AXES.get(logical) if logical else None
            if axis in used or axis not in mesh.shape or size % mesh.shape[axis]:
                axis = None
            used.add(axis)
            entries.append(axis)
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree_util.tree_map_with_path(place, shapes)
