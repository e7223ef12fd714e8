"""The mesh a kernel runs on: the one that `jax.set_mesh` put in context.

The compiler splits plain jnp by itself. It cannot split a Pallas kernel, and would send
whole tiles of logits between devices, so kernels are mapped over the mesh by hand, as
the table in `pdecode.sharding.placement` places their arguments.
"""

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from pdecode.sharding import placement


def in_context() -> AbstractMesh | None:
    """The mesh to map over: None without one, or where it is mapped over already."""
    mesh = jax.sharding.get_abstract_mesh()
    if (
        mesh.empty
        or mesh.size == 1
        or any(kind != AxisType.Auto for kind in mesh.axis_types)
    ):
        return None
    return mesh


def spec(logical: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """`placement.spec` on the mesh in context; nothing is split without one."""
    mesh = in_context()
    if mesh is None:
        return PartitionSpec(*(None for _ in shape))
    return placement.spec(logical, shape, mesh)
