"""Bytes of a training step's state on one device, split and whole, from the compiler.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python experiments/training/state.py

Nothing is trained: the step is compiled for each mesh, and its memory is what the
compiler says. "kept" is the share of the state that the step writes where it read it.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pdecode.train import plan, settings, steps

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "byte_target.py"
SETTINGS = (
    "model.width=512", "model.num_heads=8", "model.num_kv_heads=8",
    "model.mlp_width=2048", "model.num_layers=8", "forward=transformer",
    "short_len=64", "row_len=64", "batch_size=8", "model.dtype=float32",
)  # fmt: skip
MESHES = (
    {"data": 1},
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 4},
    {"fsdp": 2, "tensor": 4},
)


def measure(config, axes):
    """Bytes on each device: of the state, of the step's arguments, kept in place."""
    program = steps.make(config, plan.mesh(config, axes), None)
    rows = config.batch_size, config.row_len
    tokens = jax.ShapeDtypeStruct(rows, jnp.int32, sharding=program.rows)
    lowered = program.step.lower(
        program.shapes, {}, {"tokens": tokens}, np.int32(0), np.zeros(1, np.int32)
    )
    memory = lowered.compile().memory_analysis()
    state = steps.bytes_per_device(program.shapes)
    return state, memory.argument_size_in_bytes, memory.alias_size_in_bytes


def main():
    config = settings.override(settings.load(CONFIG), SETTINGS)
    whole = None
    print("| mesh | state MB | of one device's | arguments MB | kept |")
    print("|---|---|---|---|---|")
    for axes in MESHES:
        state, arguments, kept = measure(config, axes)
        whole = state if whole is None else whole
        name = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        print(
            f"| {name} | {state / 1e6:.2f} | {state / whole:.4f} "
            f"| {arguments / 1e6:.2f} | {min(kept / state, 1):.0%} |"
        )


if __name__ == "__main__":
    main()
