"""Where arrays live on a mesh: logical axes by name, one table to mesh axes.

Following the logical-axis rules of Flax and Megatron-style tensor parallelism (Shoeybi
et al., 2019, arXiv:1909.08053): columns of what opens a branch, rows of what closes it,
experts by expert. "fsdp" splits parameters by their width and rows of the batch at once
(Rajbhandari et al., 2019, arXiv:1910.02054).
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# Mesh axes in the order they are taken. What the mesh lacks, what the array has used
# already and what does not divide the dimension is left out.
MESH_AXES: dict[str, tuple[str, ...]] = {
    # Parameters.
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "expert": ("expert",),
    "embed": ("fsdp",),
    # Caches, canvases, prompts, and what drafters remember.
    "rows": ("data", "fsdp"),
    "kv_heads": ("tensor",),
    "slots": ("sequence",),
}

_OPENING = {"query", "key", "value"}
_FUSED = {"qkv", "gate_up"}  # of `models.fusing`: parts that a split would cut across
_BY_LEAF = {
    "embed": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    "positions": (None, "embed"),
}
CACHE = ("rows", "kv_heads", "slots", None)  # of a cache leaf [B, H, S, D]


def logical_axes(path: tuple[str, ...], rank: int) -> tuple[str | None, ...]:
    """Logical axes of the parameter at `path`, one a dimension."""
    if path[-1] in _BY_LEAF:
        return _BY_LEAF[path[-1]]
    if path[-1] in ("lora_a", "lora_b"):  # beside a kernel, and its rank stays whole
        first, last = logical_axes((*path[:-1], "kernel"), rank)
        return (first, None) if path[-1] == "lora_a" else (None, last)
    if rank == 3:  # experts [N, in, out]
        closing = path[-1] == "down"
        return ("expert", "mlp", "embed") if closing else ("expert", "embed", "mlp")
    if len(path) > 1 and path[-2] in _FUSED:
        return ("embed", None)[-rank:]
    if len(path) < 2 or path[-2] not in _OPENING | {"gate", "up", "out", "down"}:
        return (None,) * rank
    branch = "heads" if path[-2] in _OPENING | {"out"} else "mlp"
    axes = ("embed", branch) if path[-2] not in {"out", "down"} else (branch, "embed")
    return axes if rank == 2 else axes[1:]


def spec(
    logical: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The mesh axes of an array [shape] whose dimensions mean `logical`."""
    used: set[str] = set()
    entries: list[Any] = []
    for size, name in zip(shape, logical, strict=True):
        chosen: list[str] = []
        for axis in MESH_AXES[name] if name else ():
            split = math.prod(mesh.shape[each] for each in chosen)
            if axis in mesh.shape and axis not in used:
                if size % (split * mesh.shape[axis]) == 0:
                    chosen.append(axis)
        used.update(chosen)
        # One axis by its name, so that specs of one axis compare as they are written.
        entries.append(tuple(chosen) if len(chosen) > 1 else (chosen or [None])[0])
    return PartitionSpec(*entries)


def specs(shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for every parameter in a tree of shapes (or arrays).

    Raises ValueError for fused projections over a tensor axis.
    """

    def place(path, leaf):
        names = tuple(str(key.key) for key in path)
        if not _FUSED.isdisjoint(names):
            check_fused(mesh)
        logical = logical_axes(names, len(leaf.shape))
        return NamedSharding(mesh, spec(logical, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, shapes)


def check_fused(mesh: Mesh | AbstractMesh | None) -> None:
    """ValueError where fused projections cannot lie on `mesh`."""
    size = 1 if mesh is None else mesh.shape.get("tensor", 1)
    if size > 1:
        raise ValueError(
            f"fused projections do not split over tensor={size}: load the model with "
            "fused=False (--no-fused), or make the tensor axis 1"
        )


class Whole(NamedTuple):
    """A parameter that the table would split over a mesh axis, and that stays whole."""

    path: str
    size: int  # of the dimension that does not divide
    axis: str
    num_bytes: int  # of the parameter on every device


def undivided(shapes: Any, mesh: Mesh | AbstractMesh) -> list[Whole]:
    """What of a tree of parameters does not divide over `mesh`; empty if all does."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        names = tuple(str(key.key) for key in path)
        logical = logical_axes(names, len(leaf.shape))
        entries = spec(logical, leaf.shape, mesh)
        used = [axis for each in entries if each for axis in _axes(each)]
        split = math.prod(mesh.shape[axis] for axis in used)
        for size, name in zip(leaf.shape, logical):
            for axis in MESH_AXES[name] if name else ():
                if mesh.shape.get(axis, 1) > 1 and axis not in used:
                    here = math.prod(leaf.shape) * leaf.dtype.itemsize // split
                    found.append(Whole("/".join(names), size, axis, here))
    return found


def undivided_text(found: list[Whole]) -> str:
    """One line: what stays whole, over which axis, and the bytes on every device."""
    first = found[0]
    axes = ", ".join(sorted({each.axis for each in found}))
    total = sum({each.path: each.num_bytes for each in found}.values())
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{first.path} ({first.size}){more} does not divide over the mesh axis {axes}: "
        f"{total:,} bytes stay whole on every device"
    )


def _axes(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def row_specs(shapes: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of what belongs to rows, such as a cache.

    A leaf [B, H, S, D] is taken for keys or values, any other [B, ...] is split over
    its rows only. Without dimensions it is on every device.
    """

    def place(leaf):
        rank = len(leaf.shape)
        logical = CACHE if rank == 4 else ("rows",) * (rank > 0) + (None,) * (rank - 1)
        return NamedSharding(mesh, spec(logical, leaf.shape, mesh))

    return jax.tree.map(place, shapes)
