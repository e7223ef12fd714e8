"""Several processes, one program: `jax.distributed`, and what each of them reads.

Every process runs the same code on the same prompt and parameters; `pdecode.sharding`
then gives each device its part. Nothing else is exchanged but by the program itself.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pdecode import sharding


def start(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the processes before JAX looks for devices. CPU ones talk through gloo.

    `coordinator` is the HOST:PORT of process 0. Raises ValueError for an address or
    numbers that cannot be right.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"coordinator={coordinator!r} must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id} must lie in [0, {num_processes}): "
            f"there are num_processes={num_processes}"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def make_mesh(**sizes: int) -> Mesh:
    """`sharding.make_mesh` over the devices of all processes.

    ValueError also where a mesh leaves devices out: a process without a part in it
    could not run the program that the others wait in.
    """
    mesh = sharding.make_mesh(devices=None, **sizes)
    if mesh.size < jax.device_count() and jax.process_count() > 1:
        raise ValueError(
            f"a mesh of {sizes} has {mesh.size} of the {jax.device_count()} devices of "
            f"{jax.process_count()} processes: it must have all"
        )
    return mesh


def whole(tree: Any) -> Any:
    """Arrays that are split over processes as numpy, whole, on each of them."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
