"""Several processes, one program: `jax.distributed`, and what each of them reads.

Every process runs the same code on the same prompt and parameters; `pdecode.sharding`
then gives each device its part. Nothing else is exchanged but by the program itself.
"""

from typing import Any

import jax
from jax.experimental import multihost_utils


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


def whole(tree: Any) -> Any:
    """Arrays that are split over processes as numpy, whole, on each of them."""
    return multihost_utils.process_allgather(tree, tiled=True)
