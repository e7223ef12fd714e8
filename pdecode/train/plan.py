"""Where a run's arrays will live, checked before anything is computed."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from pdecode.sharding import placement, processes
from pdecode.train import adapters, optimizers, sources, steps
from pdecode.train.config import TrainConfig

_AXES = ("data", "fsdp", "tensor", "expert")


def mesh(config: TrainConfig, axes: dict[str, int] | None) -> Mesh:
    """The mesh of a run; None: all devices over the rows of a batch.

    Raises ValueError, with the sizes that would do, where the rows do not divide.
    """
    axes = {"data": jax.device_count()} if axes is None else axes
    for axis in axes:
        if axis not in _AXES:
            raise ValueError(
                f"--mesh {axis}={axes[axis]} splits nothing in training; known: "
                f"{', '.join(_AXES)}"
            )
    made = processes.make_mesh(**axes)
    split = math.prod(made.shape.get(axis, 1) for axis in placement.MESH_AXES["rows"])
    part = config.batch_size // config.accumulate
    if part % split:
        low = part // split * split * config.accumulate
        near = [low, low + split * config.accumulate]
        sizes = " or ".join(str(size) for size in near if size)
        raise ValueError(
            f"batch_size={config.batch_size} (accumulate={config.accumulate}) does not "
            f"divide over {split} devices of data x fsdp: use batch_size={sizes}, or "
            "fewer devices, as --mesh data=1"
        )
    return made


def check_divided(config: TrainConfig, found: dict, program: steps.Program) -> None:
    """ValueError where the mesh would leave parameters whole, or splits nothing."""
    places = program.whole.mesh
    trees = {"": program.shapes["params"]}
    trees |= {f"{field}: ": each.params for field, each in found.items()}
    split: set[str] = {axis for axis in places.shape if places.shape[axis] == 1}
    split |= {"data"}
    for tree in trees.values():
        whole = placement.undivided(tree, places)
        if whole:
            raise ValueError(
                f"--mesh {whole[0].axis}={places.shape[whole[0].axis]}: "
                f"{placement.undivided_text(whole)}; choose a size that divides "
                f"{whole[0].size}, or another axis"
            )
        for each in jax.tree.leaves(placement.specs(tree, places)):
            for entry in each.spec:
                split |= {entry} if isinstance(entry, str) else set(entry or ())
    for axis in places.shape:
        if axis not in split:
            raise ValueError(
                f"--mesh {axis}={places.shape[axis]} splits nothing of this model: its "
                "devices would all do the same"
            )


def placed(config: TrainConfig, found: dict[str, sources.Source], mesh: Mesh) -> dict:
    """The frozen models by role, and the base of adapters, each split by the table."""
    trees = {role: found[f"frozen.{role}"].params for role in config.frozen}
    if config.adapters is not None:
        trees[adapters.BASE] = found["start_from"].params
    return jax.tree.map(
        lambda leaf, place: jax.make_array_from_callback(
            leaf.shape, place, leaf.__getitem__
        ),
        trees,
        {role: placement.specs(tree, mesh) for role, tree in trees.items()},
    )


def text(config: TrainConfig, program: steps.Program, inputs: Any) -> str:
    """What a run would do, in lines: groups, bytes, texts, rates."""
    lines = [f"objective {config.objective}, {config.steps} steps"]
    lines.append("role        tensors      parameters  rule  weight decay")
    for group in optimizers.groups(config, program.shapes["params"]):
        lines.append(
            f"{group.role:<10} {group.num_tensors:>8} {group.num_params:>15,}  "
            f"{group.rule:<5} {group.weight_decay:g}"
        )
    count = steps.bytes_per_device(program.shapes)
    axes = ", ".join(
        f"{axis}={size}" for axis, size in program.whole.mesh.shape.items()
    )
    lines.append(f"state: {count:,} bytes on each device of {axes}")
    for each in (inputs.training, inputs.validation):
        facts = each.describe()
        lines.append(
            f"{each.name} text: {facts['tokens']:,} tokens, "
            f"{facts['scored_tokens']:,} of them scored, in bits per {each.unit}"
        )
    rate = optimizers.learning_rate(config)
    marks = sorted(
        {0, max(config.warmup_steps - 1, 0), config.steps // 2, config.steps - 1}
    )
    told = ", ".join(f"{float(rate(m)):g} at step {m + 1}" for m in marks)
    lines.append(f"learning rate: {told}")
    return "\n".join(lines)
