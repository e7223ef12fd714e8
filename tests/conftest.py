import ctypes
import gc
import importlib.metadata
import os
import resource
import shutil
import sys
import tempfile

# Eight host devices for the sharding tests; must be set before jax starts. Toy programs
# are compiled once and run briefly: the other flags cut compile time to about a third.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_force_host_platform_device_count=8"
        " --xla_backend_optimization_level=0"
        " --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_parallel_codegen_split_count=1"
    )
    # Releases know different flags and stop at an unknown one: the older code
    # generator, and matmuls that are called rather than generated.
    installed = importlib.metadata.version("jaxlib")
    if installed.startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    elif installed.startswith("0.12."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_experimental_ynn_fusion_type="

import chex  # noqa: E402
import default_cases  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The workers of one run share what they compile; a run begins with nothing.
MADE_HERE = "PDECODE_TEST_PROGRAMS" not in os.environ
if MADE_HERE:
    os.environ["PDECODE_TEST_PROGRAMS"] = tempfile.mkdtemp()
PROGRAMS = os.environ["PDECODE_TEST_PROGRAMS"]
jax.config.update("jax_compilation_cache_dir", PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Compiled programs live as long as the suite; walking them again and again is waste.
gc.set_threshold(100_000, 20, 100)


def pytest_unconfigure():
    if MADE_HERE:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


MOST_RESIDENT = 1.2e9  # bytes; above it a worker lets go of the programs it holds

_last: list = [None]


@pytest.fixture(autouse=True)
def programs_of_one_case(request):
    """A case in another file may be traced anew; a worker stays small."""
    spec = getattr(request.node, "callspec", None)
    name = spec.params.get("name") if spec else None
    here = (request.node.path, name if isinstance(name, str) else None)
    if _last[0] not in (None, here):
        chex.clear_trace_counter()
        table = sys.modules.get("table")
        if table is not None:
            table.traced_once.cache_clear()
        if resident() > MOST_RESIDENT:
            jax.clear_caches()
            gc.collect()
            if sys.platform == "linux":  # else the allocator keeps what is free
                ctypes.CDLL(None).malloc_trim(0)
    _last[0] = here


def resident():
    """Bytes that this process holds in memory."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of one method go to one worker, for its program; some cases wait."""
    for item in default_cases.waiting(items):
        item.add_marker(pytest.mark.slow)
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if item.path.name == "test_methods.py" and name:
            item.add_marker(pytest.mark.xdist_group(str(name)))
