import gc
import importlib.metadata
import os

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
    # Newer releases know one code generator only, and stop at an unknown flag.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs live as long as the suite; walking them again and again is waste.
gc.set_threshold(100_000, 20, 100)


# Further rows of tables that the default run samples, and tests in processes of their
# own: minutes more, `pytest -m thorough`.
THOROUGH = (
    "test_lossless_in_law[sjd]",
    "test_lossless_in_law[gs_sjd]",
    "test_two_processes_agree_with_one",
    "test_number_of_masks_is_binomial[mdlm-sizes1]",
    "test_number_of_masks_is_binomial[remdm-sizes3]",
    "test_diffusion_gemma_generations[1]",
    "test_diffusion_gemma_generations[2]",
    "test_two_programs_decode_what_one_does[llada]",
    "test_recorded_generations_through_the_command_line[llada_tiny-case1]",
    "test_recorded_generations_through_the_command_line[llada_tiny-case2]",
    "test_recorded_generations_through_the_command_line[llada_tiny-case7]",
    "test_recorded_generations_through_the_command_line[llada_tiny-case8]",
    "test_recorded_generations_through_the_command_line[dream_tiny-case1]",
    "test_recorded_generations_through_the_command_line[dream_tiny-case2]",
    "test_training_lowers_the_loss[masked_diffusion-muon-model1]",
    "test_gradients_reach_every_parameter",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the thorough; tests of one method go to one worker, for its program."""
    for item in items:
        if item.name in THOROUGH:
            item.add_marker(pytest.mark.thorough)
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if item.path.name == "test_methods.py" and name:
            item.add_marker(pytest.mark.xdist_group(str(name)))
