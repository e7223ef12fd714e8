import os

# Eight host devices for the sharding tests; must be set before jax starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    # Toy programs are compiled once and run briefly: skip the costly passes.
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_force_host_platform_device_count=8"
        " --xla_backend_optimization_level=0"
    )

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Tests of one method go to one worker: they share its compiled program."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if item.path.name == "test_methods.py" and name:
            item.add_marker(pytest.mark.xdist_group(str(name)))
