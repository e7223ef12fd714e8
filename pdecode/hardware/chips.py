"""Chips that need not be here: of TPUs their published rates, and topologies.

Peak rates are those of the Google Cloud TPU documentation (its pages on v5e, v5p and
v6e). It gives the bandwidth between chips as the sum of both directions of all links;
half of it goes one way.
"""

import contextlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pdecode.hardware import roofline

_V5E = roofline.v5e(0, 0)


class Chip(NamedTuple):
    """Peak rates of one chip."""

    flops: float  # a second, bfloat16
    bandwidth: float  # bytes a second, memory
    links: float  # bytes a second, all links to other chips, one direction
    memory: float  # bytes


CHIPS = {
    "v5e": Chip(_V5E.flops, _V5E.bandwidth, 400e9 / 2, 16 * 2**30),
    "v5p": Chip(459e12, 2.765e12, 1200e9 / 2, 95 * 2**30),
    "v6e": Chip(918e12, 1.638e12, 800e9 / 2, 32 * 2**30),
}


# What XLA asks of a GPU that it compiles for: an H100 SXM, of NVIDIA's data sheet and
# CUDA's limits for compute capability 9.0.
GPU_NAME, GPU_CORES = "NVIDIA H100 80GB HBM3", 132
_GPU = f"""
platform_name: "CUDA"
device_description_str: "{GPU_NAME}"
dnn_version_info {{ major: 9 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: {GPU_CORES}
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 85899345920
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


def default_mesh(num_devices: int, num_kv_heads: int) -> dict[str, int]:
    """Tensor as wide as heads and devices allow, at most 16; the rest is fsdp."""
    tensor = math.gcd(math.gcd(num_devices, num_kv_heads), 16)
    return {"fsdp": num_devices // tensor, "tensor": tensor}


def devices(target: str) -> tuple[str | None, list]:
    """(TPU generation, devices of the topology); (None, one device) for CUDA.

    `target` is "tpu-GENERATION-TOPOLOGY", such as tpu-v5e-2x4, or "cuda", whose device
    is None where its compiler is not installed (`gpu`). ValueError for what is neither,
    and without libtpu, which knows the topologies.
    """
    if target == "cuda":
        return None, [gpu()]
    kind, _, rest = target.partition("-")
    generation, _, topology = rest.partition("-")
    if kind != "tpu" or generation not in CHIPS or not topology:
        raise ValueError(
            f"unknown target {target!r}: write cuda, or tpu-GENERATION-TOPOLOGY such "
            f"as tpu-v5e-2x4; known generations: {', '.join(CHIPS)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"{target} needs the TPU compiler: pip install 'pdecode[tpu-aot]'"
        )
    from jax.experimental import topologies

    # Nobody is asked for the metadata of a machine that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        with _quiet():
            found = topologies.get_topology_desc(
                f"{generation}:{topology}", platform="tpu"
            )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{target}: {str(error).splitlines()[0]}") from None
    return generation, list(found.devices)


def gpu() -> jax.Device | None:
    """An H100 to compile for, if jax's CUDA plugin is installed; no GPU is needed."""
    from jax.experimental import topologies

    # Read when plugins are loaded: without a driver there is nothing to check.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        with _quiet(always=True):
            found = topologies.get_topology_desc(
                "", "cuda", topology="1x1x1", target_config=_GPU
            )
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return found.devices[0]


def gpu_known() -> contextlib.AbstractContextManager:
    """Where kernels can be lowered for CUDA: jax 0.11 wants to know the GPU."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = AbstractDevice(GPU_NAME, GPU_CORES, "cuda")
    mesh = AbstractMesh(
        (1,), ("gpu",), axis_types=(AxisType.Auto,), abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


@contextlib.contextmanager
def _quiet(always: bool = False) -> Iterator[None]:
    """Keeps what libtpu says about missing hardware off standard error, if all is well.

    It writes to the file descriptor from C++. `always` keeps it off if not, too.
    """
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            if not always:
                os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
