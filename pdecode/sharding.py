"""Meshes, and where arrays live on them; `jax.jit` does the rest.

Rows are split over "data", parameters over "tensor", "fsdp", "expert" by the table in
`pdecode.models.placement`. All axes are of type Auto: with Explicit axes a while loop
over sharded caches must spell out the sharding of every intermediate.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pdecode.models import placement

AXES = ("data", "fsdp", "tensor", "expert", "sequence")


def make_mesh(**sizes: int) -> Mesh:
    """A mesh of the first devices, such as make_mesh(data=2, tensor=4).

    Raises ValueError for an unknown axis or more devices than there are.
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"unknown mesh axis {unknown[0]!r}; known: {', '.join(AXES)}")
    wanted = 1
    for size in sizes.values():
        wanted *= size
    if wanted > jax.device_count():
        raise ValueError(
            f"a mesh of {sizes} needs {wanted} devices, but there are "
            f"{jax.device_count()}"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[:wanted],
    )


def shard_params(params: Any, mesh: Mesh) -> Any:
    """`params` of a transformer placed by logical axes; what does not divide is whole.

    Trees that are not a transformer's (a toy's, heads) are replicated.
    """
    if not isinstance(params, dict):
        return replicate(params, mesh)
    return jax.device_put(params, placement.specs(params, mesh))


def shard_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...], a Prompt for example, split over "data"."""
    spec = PartitionSpec("data" if "data" in mesh.shape else None)
    return jax.device_put(tree, NamedSharding(mesh, spec))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same on every device: keys, knobs, a toy's law."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
