import gc
import importlib.metadata
import os
import sys

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
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs live as long as the suite; walking them again and again is waste.
gc.set_threshold(100_000, 20, 100)


_last: list = [None]


@pytest.fixture(autouse=True)
def programs_of_one_case(request):
    """Compiled programs go when the case or the file changes: a worker stays small."""
    spec = getattr(request.node, "callspec", None)
    name = spec.params.get("name") if spec else None
    here = (request.node.path, name if isinstance(name, str) else None)
    if _last[0] not in (None, here):
        jax.clear_caches()
        chex.clear_trace_counter()
        table = sys.modules.get("table")
        if table is not None:
            table.traced_once.cache_clear()
    _last[0] = here


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of one method go to one worker, for its program."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if item.path.name == "test_methods.py" and name:
            item.add_marker(pytest.mark.xdist_group(str(name)))
