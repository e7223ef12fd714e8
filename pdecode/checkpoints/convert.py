"""What a checkpoint folder holds, and copies of it in other formats.

`info` reads headers, and a head that is stored though its config.json calls it tied.
`convert` turns published safetensors into an Orbax folder and back, every tensor in its
own dtype, so that a round trip is equal bit for bit.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pdecode.checkpoints import loading, tensors
from pdecode.checkpoints.names import Source
from pdecode.sharding import placement

RENAMED = "renamed.json"  # usual tensor name -> the name in the file

# Beside the weights; all else in a folder is left behind.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def info(
    path: str | os.PathLike, mesh_axes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Facts about a checkpoint folder, published or converted, as plain data.

    `architecture`, `config`, `num_params`, `stored` {dtype: bytes}, `memory` {dtype:
    bytes the parameters take in it}, and with `mesh_axes`, such as {"tensor": 4},
    `per_device` {dtype: bytes of the fullest device}. Raises ValueError as `load` does.
    """
    folder = pathlib.Path(path)
    if (folder / loading.ORBAX).is_dir():
        shapes = loading.stored(folder)["params"]
        config = dataclasses.replace(
            loading.read_converted(folder)[1], dtype=shapes["embed"].dtype.name
        )
        read = jax.tree.leaves(shapes)
    else:
        checkpoint = loading.open_folder(folder)
        config, shapes = checkpoint.config, checkpoint.shapes
        sources = checkpoint.sources.values()
        read = [
            checkpoint.index[name]
            for name in {name for each in sources for name in each.names}
        ]
    leaves = jax.tree.leaves(shapes)
    num_params = sum(math.prod(leaf.shape) for leaf in leaves)
    stored: dict[str, int] = {}
    for each in read:
        size = math.prod(each.shape) * each.dtype.itemsize
        stored[each.dtype.name] = stored.get(each.dtype.name, 0) + size
    sizes = {"float32": 4, "bfloat16": 2}
    facts: dict[str, Any] = {
        "architecture": config.name,
        "config": dataclasses.asdict(config),
        "num_params": num_params,
        "stored": stored,
        "memory": {dtype: num_params * size for dtype, size in sizes.items()},
    }
    if mesh_axes:
        known = sorted({axis for axes in placement.MESH_AXES.values() for axis in axes})
        unknown = sorted(set(mesh_axes) - set(known))
        if unknown:
            raise ValueError(
                f"unknown mesh axis {', '.join(unknown)}; known: {', '.join(known)}"
            )
        mesh = jax.sharding.AbstractMesh(tuple(mesh_axes.values()), tuple(mesh_axes))
        shardings = jax.tree.leaves(placement.specs(shapes, mesh))
        local = sum(
            math.prod(sharding.shard_shape(leaf.shape))
            for leaf, sharding in zip(leaves, shardings, strict=True)
        )
        facts["per_device"] = {dtype: local * size for dtype, size in sizes.items()}
    return facts


def text(facts: dict[str, Any], mesh_axes: Mapping[str, int] | None = None) -> str:
    """What `info` found, given the same axes, as lines to read."""
    lines = []
    for name, value in facts.items():
        if not isinstance(value, dict):
            number = f"{value:,}" if isinstance(value, int) else value
            lines.append(f"{name}: {number}")
            continue
        mesh = ",".join(f"{axis}={size}" for axis, size in (mesh_axes or {}).items())
        lines.append(f"{name} ({mesh}):" if name == "per_device" else f"{name}:")
        for key, each in value.items():
            if name != "config":
                unit, size = ("GiB", 2**30) if each >= 2**30 else ("MiB", 2**20)
                lines.append(f"  {key}: {each / size:,.2f} {unit}")
            elif isinstance(each, dict):
                given = (f"{k} {v}" for k, v in each.items() if v is not None)
                lines.append(f"  {key}: {', '.join(given)}")
            elif each is not None and each is not False and each != ():
                lines.append(f"  {key}: {each}")
    return "\n".join(lines)


def convert(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a checkpoint: safetensors to Orbax, or Orbax to safetensors.

    Raises ValueError if `target` exists or `source` is neither.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ValueError(f"{target} exists already: name a new folder")
    if (source / loading.ORBAX).is_dir():
        to_safetensors(source, target)
    else:
        to_orbax(source, target)


def to_orbax(source: pathlib.Path, target: pathlib.Path) -> None:
    """`target`/orbax holds {"params": tree, "other": tensors the model ignores}.

    Files that spell a family's names in their own way leave a list of them, RENAMED.
    """
    import orbax.checkpoint as ocp

    checkpoint = loading.open_folder(source)
    usual = checkpoint.family.names(checkpoint.config)
    renamed = {
        name: found
        for path, each in checkpoint.sources.items()
        for name, found in zip(usual[path].names, each.names, strict=True)
        if name != found
    }
    used = {name for each in checkpoint.sources.values() for name in each.names}
    tree = {
        "params": loading.read_params(checkpoint, keep_dtypes=True),
        "other": {
            name: tensors.read(entry)
            for name, entry in checkpoint.index.items()
            if name not in used
        },
    }
    _companions(source, target)
    if renamed:
        (target / RENAMED).write_text(json.dumps(renamed, indent=1) + "\n")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((target / loading.ORBAX).absolute(), tree)


def to_safetensors(source: pathlib.Path, target: pathlib.Path) -> None:
    """`target`/model.safetensors under the names the checkpoint was published with."""
    family, config = loading.read_converted(source)
    tree = loading.restore(source)
    params = dict(loading.flat(tree["params"]))
    published: dict[str, np.ndarray] = {}
    for path, parts in _by_tensors(family.names(config)).items():
        published |= _published(path, parts, params)
    if (source / RENAMED).is_file():
        renamed = json.loads((source / RENAMED).read_text(encoding="utf-8"))
        published = {renamed.get(k, k): value for k, value in published.items()}
    published |= {name: np.asarray(value) for name, value in tree["other"].items()}
    _companions(source, target)
    tensors.write(target / "model.safetensors", published, {"format": "pt"})


def _by_tensors(sources: dict[str, Source]) -> dict[tuple, list[tuple[str, Source]]]:
    """Parameters grouped by the tensors they share, parts in order."""
    groups: dict[tuple, list[tuple[str, Source]]] = {}
    for path, source in sources.items():
        groups.setdefault(source.names, []).append((path, source))
    for members in groups.values():
        members.sort(key=lambda member: member[1].part)
    return groups


def _published(
    names: tuple, members: list[tuple[str, Source]], params: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The tensors `names` out of the parameters they were read into."""
    values = [np.asarray(params[path]) for path, _ in members]
    how = members[0][1].how
    if how == "stack":
        return {name: values[0][i].T for i, name in enumerate(names)}
    if how == "part":
        return {names[0]: np.concatenate(values, axis=-1)}
    if how == "rows":
        return {names[0]: np.concatenate([value.T for value in values])}
    if how == "half":
        swapped = [value.swapaxes(1, 2) for value in values]
        return {names[0]: np.concatenate(swapped, axis=1)}
    return {names[0]: values[0].swapaxes(-1, -2) if how == "linear" else values[0]}


def _companions(source: pathlib.Path, target: pathlib.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
