"""Several processes, one program: `jax.distributed`, and what each of them reads.

Every process runs the same code on the same prompt and parameters; `pdecode.sharding`
then gives each device its part. Nothing else is exchanged but by the program itself.
"""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pdecode import sharding
from pdecode.sharding import meeting

PATIENCE_S = 300.0  # as long as JAX waits
_started: dict[str, str] = {}  # the host of process 0, once `start` has been called


def start(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the processes before JAX looks for devices. CPU ones talk through gloo.

    `coordinator` is the HOST:PORT of process 0. Each waits for the others, PATIENCE_S
    at most, and says on standard error for whom. Raises ValueError for an address or
    numbers that cannot be right, a port that process 0 cannot open, two processes of
    one id, other numbers of processes, and a process that does not come.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator={coordinator!r} must be HOST:PORT, the port below {2**16}"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id} must lie in [0, {num_processes}): "
            f"there are num_processes={num_processes}"
        )
    if process_id == 0:
        meeting.receive(coordinator, int(port), num_processes, PATIENCE_S, _tell)
    else:
        meeting.join(
            coordinator, host, int(port), num_processes, process_id, PATIENCE_S, _tell
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)
    _started["host"] = host


def start_detected() -> None:
    """Joins the processes of a cluster that JAX knows: TPU slices, Slurm, Open MPI, ...

    Raises ValueError where it detects none.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"jax detects no cluster here ({' '.join(str(error).split())}): give "
            "--coordinator HOST:PORT, --num-processes and --process-id"
        ) from None


def coordinator_host() -> str:
    """Where process 0 is, as `start` was told."""
    return _started.get("host", "localhost")


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


def shared(value: Any) -> list[Any]:
    """The JSON values that all processes give in the same call, by process."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(mine)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(mine)] = mine
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.ravel())]


def agree(facts: dict[str, Any]) -> None:
    """Ends all processes where they differ in a fact; free with one process.

    Process 0 raises ValueError, which names the first such field and each process's
    value; the others leave quietly.
    """
    everyone = [_flat(each) for each in shared(facts)]
    for field in sorted({name for each in everyone for name in each}):
        values = [each.get(field) for each in everyone]
        if any(value != values[0] for value in values):
            told = ", ".join(
                f"{value!r} in process {i}" for i, value in enumerate(values)
            )
            _leave(f"the processes differ in {field}: {told}; start all with the same")


def together(action: Callable[[], Any]) -> Any:
    """What `action` gives; where it fails in one process, all of them end.

    Process 0 raises ValueError with the first failure, the others leave quietly; so
    none waits for one that is gone.
    """
    if jax.process_count() == 1:
        return action()
    failure, found = None, None
    try:
        found = action()
    except (ValueError, TypeError, OSError) as error:
        failure = str(error)
    for index, each in enumerate(shared(failure)):
        if each is not None:
            _leave(each if index == 0 else f"process {index}: {each}")
    return found


def code_version() -> str:
    """A hash of the package's sources."""
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _tell(line: str) -> None:
    print(f"pdecode: {line}", file=sys.stderr, flush=True)


def _leave(message: str) -> None:
    if jax.process_index() == 0:
        raise ValueError(message)
    raise SystemExit(2)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = (
        _flat(each, f"{name}.{key}" if name else key) for key, each in value.items()
    )
    return {key: each for part in parts for key, each in part.items()}
