"""TPU chips that need not be here: their published rates, and topologies of them.

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


def default_mesh(num_devices: int, num_kv_heads: int) -> dict[str, int]:
    """Tensor as wide as heads and devices allow, at most 16; the rest is fsdp."""
    tensor = math.gcd(math.gcd(num_devices, num_kv_heads), 16)
    return {"fsdp": num_devices // tensor, "tensor": tensor}


def devices(target: str) -> tuple[str | None, list]:
    """(TPU generation, devices of the topology); (None, one device) for CUDA.

    `target` is "tpu-GENERATION-TOPOLOGY", such as tpu-v5e-2x4, or "cuda". ValueError
    for what is neither, and without libtpu, which knows the topologies.
    """
    if target == "cuda":
        return None, [None]
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what libtpu says about missing hardware off standard error, if all is well.

    It writes to the file descriptor from C++.
    """
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
