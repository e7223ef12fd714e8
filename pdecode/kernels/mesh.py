"""The mesh a kernel runs on: the one that `jax.set_mesh` put in context.

The compiler splits plain jnp by itself. It cannot split a Pallas kernel, and would send
whole tiles of logits between devices, so kernels are mapped over the mesh by hand.
"""

import jax
from jax.sharding import AxisType


def free_axes() -> dict[str, int]:
    """Sizes of the axes of the mesh in context that the compiler still splits over."""
    mesh = jax.sharding.get_abstract_mesh()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis: mesh.shape[axis] for axis, type in types if type == AxisType.Auto}


def splits(**sizes: int) -> dict[str, int]:
    """Parts that each named mesh axis cuts a dimension into, where it does.

    `splits(data=8, tensor=32000)` is {"data": 2, "tensor": 4} on such a mesh. An axis
    that the mesh lacks, that does not divide the dimension, or that is mapped over
    already is left out; without a mesh the result is empty.
    """
    axes = free_axes()
    return {
        axis: axes[axis]
        for axis, size in sizes.items()
        if axes.get(axis, 1) > 1 and size % axes[axis] == 0
    }
