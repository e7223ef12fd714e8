"""From a downloaded checkpoint folder to a model on devices, one tensor at a time.

    model, params, tokenizer = load("path/to/folder", mesh=mesh)

Only config.json, *.safetensors and the tokenizer files are read, nothing is executed,
and nothing is fetched. The host holds one tensor at a time, or one shard's part of it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pdecode import files
from pdecode.checkpoints import architectures, tensors
from pdecode.checkpoints import stored as stored_tensors
from pdecode.checkpoints import tokenizer as tokenizers
from pdecode.checkpoints.names import Source
from pdecode.contracts import Params
from pdecode.models import embedded, fusing, int8
from pdecode.models.config import checked_dtype, held
from pdecode.sharding import placement

ORBAX = "orbax"  # the subfolder of a converted checkpoint

# Says that the weights of a config.json are packed.
_QUANTISED = ("quantization_config", "quantization", "compression_config")
# What a refusal by `Config` is about, as the files spell it.
_SIZES = """vocab_size hidden_size n_embd d_model num_hidden_layers n_layer n_layers
    num_attention_heads n_head n_heads num_key_value_heads n_kv_heads head_dim
    mask_token_id block_size""".split()

# Buffers that old checkpoints carry and that follow from the configuration.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class Checkpoint(NamedTuple):
    """A checkpoint folder, read up to its headers."""

    folder: pathlib.Path
    family: architectures.Family
    config: Any
    index: dict[str, tensors.Entry]
    sources: dict[str, Source]  # parameter path -> tensors, by their names in `index`
    shapes: Params  # a tree of jax.ShapeDtypeStruct


def load(
    path_or_name: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    fused: bool = False,
) -> tuple[Any, Params, Any]:
    """(model, params, tokenizer) of a checkpoint folder, or of an embedded model.

    The first is a `Model`, or for the embedded "heads" a `DraftHeads`.
    `dtype` of parameters, activations and cache; None: the checkpoint's own. Behind it
    +int8 keeps the weights of the layers in int8 and +int8kv keys and values
    (`models.int8`), with one layer twice in memory: "bfloat16+int8", "int8". With a
    mesh each device receives its part of every parameter (`placement`), else the
    default device receives all. `fused` joins the projections of every layer
    (`models.fusing`), with one layer twice in memory. The tokenizer of a folder without
    one refuses text and works on ids.

    Raises:
      ValueError: not a folder, an unknown architecture, configuration values that are
        not supported, no safetensors, a partial or truncated download, tensors that are
        missing, unexpected or of the wrong shape; each by name. Or `fused` over a
        tensor axis.
    """
    numbers = held(dtype)
    if fused:
        placement.check_fused(mesh)
    if not pathlib.Path(path_or_name).is_dir() and path_or_name in embedded.NAMES:
        model, params, tokenizer = embedded.load(str(path_or_name), dtype=dtype)
        return model, fusing.fused(params) if fused else params, tokenizer
    folder = _folder(path_or_name)
    if (folder / ORBAX).is_dir():
        family, config = read_converted(folder)
        config, params = _restored(folder, family, config, numbers.dtype, mesh)
    else:
        checkpoint = open_folder(folder, dtype=numbers.dtype)
        family, config = checkpoint.family, checkpoint.config
        params = read_params(checkpoint, mesh=mesh)
    if fused:
        params = fusing.fused_in_turn(params)
    model, params = int8.applied(numbers, family.module.make_model(config), params)
    if mesh is not None and (fused or numbers.int8):
        params = jax.device_put(params, placement.specs(params, mesh))
    return model, params, tokenizers.load(folder)


def open_folder(path: str | os.PathLike, *, dtype: str | None = None) -> Checkpoint:
    """Everything about a checkpoint but the weights themselves, checked."""
    folder = _folder(path)
    family, config = read_config(folder)
    index = tensors.index(folder)
    stored_tensors.refuse_quantised(folder, index)
    config, sources = stored_tensors.sources(folder, family, config, index)
    if dtype is None:
        dtype = _own_dtype(index, sources)
    config = dataclasses.replace(config, dtype=checked_dtype(dtype))
    shapes = _shapes(family, config)
    checkpoint = Checkpoint(folder, family, config, index, sources, shapes)
    _check(checkpoint)
    return checkpoint


def read_config(folder: str | os.PathLike) -> tuple[architectures.Family, Any]:
    """The family of a checkpoint folder, and its configuration in float32."""
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json")
    raw = files.read_object(folder / "config.json")
    family = architectures.of(raw)
    generation = files.read_object(folder / "generation_config.json")
    if generation.get("eos_token_id") is not None:
        raw = {**raw, "eos_token_id": generation["eos_token_id"]}
    if raw.get("mask_token_id") is None:
        mask_id = tokenizers.mask_id(folder)
        raw = raw if mask_id is None else {**raw, "mask_token_id": mask_id}
    for name in _QUANTISED:
        if raw.get(name):
            raise ValueError(
                f"config.json has {name}={raw[name]!r}: quantised checkpoints are not "
                "supported; use the folder it was made from"
            )
    fields = architectures.Fields(raw)
    try:
        config = family.config(fields)
    except ValueError as error:
        if "config.json" in str(error):
            raise
        given = [f"{name}={raw[name]!r}" for name in _SIZES if name in raw]
        if "num_key_value_heads" not in raw:
            given.append("no num_key_value_heads")
        raise ValueError(f"config.json: {error} ({', '.join(given)})") from None
    fields.warn_unread()
    return family, config


def read_converted(folder: str | os.PathLike) -> tuple[architectures.Family, Any]:
    """`read_config` of a converted folder; what it stores says if the head is tied."""
    family, config = read_config(folder)
    if family.is_head_kept:
        is_tied = "head" not in stored(folder)["params"]
        config = dataclasses.replace(config, tied=is_tied)
    return family, config


def restore(folder: str | os.PathLike, tree: Any = None) -> Any:
    """The Orbax tree {"params", "other"} of a converted folder.

    `tree` of jax.ShapeDtypeStruct with shardings says where parameters go; None: numpy.
    """
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), stored(folder))
    if tree is not None:
        target["params"] = tree
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((pathlib.Path(folder) / ORBAX).absolute(), target)


def stored(folder: str | os.PathLike) -> dict[str, Any]:
    """Shapes and dtypes of the Orbax tree of a converted folder."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        path = (pathlib.Path(folder) / ORBAX).absolute()
        tree = dict(checkpointer.metadata(path).item_metadata.tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def read_params(
    checkpoint: Checkpoint, *, mesh: Mesh | None = None, keep_dtypes: bool = False
) -> Params:
    """The parameters, each on its device before the next is read.

    In the configuration's dtype, or `keep_dtypes` each in the one it is stored in.
    """
    dtype = jnp.dtype(checkpoint.config.dtype)
    shardings = None if mesh is None else placement.specs(checkpoint.shapes, mesh)

    def leaf(path, shape, sharding=None):
        source = checkpoint.sources[path_name(path)]

        def part(index):
            value = read_source(source, checkpoint.index, shape.shape, index)
            return value if keep_dtypes else value.astype(dtype, copy=False)

        if sharding is None:
            array = jax.device_put(part((slice(None),) * len(shape.shape)))
        else:
            array = jax.make_array_from_callback(shape.shape, sharding, part)
        # Transfers are asynchronous; without waiting, host copies would pile up.
        return array.block_until_ready()

    trees = (checkpoint.shapes,) if mesh is None else (checkpoint.shapes, shardings)
    return jax.tree_util.tree_map_with_path(leaf, *trees)


def read_source(
    source: Source,
    index: Mapping[str, tensors.Entry],
    shape: tuple[int, ...],
    part: tuple[slice, ...],
) -> np.ndarray:
    """Elements `part` of a parameter of `shape`, reading only the rows it needs."""
    if source.how == "plain":
        entry = index[source.names[0]]
        rows = tensors.read(entry, part[0]) if part else tensors.read(entry)
        return rows[(slice(None), *part[1:])] if part else rows
    if source.how == "linear" and len(shape) == 2:
        rows = tensors.read(index[source.names[0]], part[1])
        return np.ascontiguousarray(rows[:, part[0]].T)
    if source.how == "linear":
        rows = tensors.read(index[source.names[0]], part[0])
        return np.ascontiguousarray(rows.swapaxes(1, 2)[:, part[1], part[2]])
    if source.how == "half":
        rows = tensors.read(index[source.names[0]], part[0])
        width = shape[-1]
        half = rows[:, source.part * width : (source.part + 1) * width]
        return np.ascontiguousarray(half.swapaxes(1, 2)[:, part[1], part[2]])
    if source.how == "part":
        whole = tensors.read(index[source.names[0]])
        width = shape[-1]
        third = whole[..., source.part * width : (source.part + 1) * width]
        return np.ascontiguousarray(third[part])
    if source.how == "rows":
        first, rows = sum(source.sizes[: source.part]), part[-1]
        start, stop, _ = rows.indices(shape[-1])
        read = tensors.read(index[source.names[0]], slice(first + start, first + stop))
        return read if len(shape) == 1 else np.ascontiguousarray(read[:, part[0]].T)
    if source.how == "stack":
        chosen = source.names[part[0]]
        each = [tensors.read(index[name], part[2])[:, part[1]].T for name in chosen]
        return np.stack(each)
    raise ValueError(f"unknown way to read a parameter: {source.how!r}")


def source_shape(source: Source, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape each of a source's tensors must have for a parameter of `shape`."""
    if source.how == "linear":
        return (*shape[:-2], shape[-1], shape[-2])
    if source.how == "half":
        return (shape[0], 2 * shape[2], shape[1])
    if source.how == "part":
        return (*shape[:-1], 3 * shape[-1])
    if source.how == "rows":
        return (sum(source.sizes), *shape[:-1])
    if source.how == "stack":
        return shape[:0:-1]
    return shape


def _check(checkpoint: Checkpoint) -> None:
    """Raise one ValueError that names everything missing, unexpected or mis-shaped."""
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.shapes)
    expected = {path_name(path): leaf.shape for path, leaf in leaves}
    missing, wrong, used = [], [], set()
    for path, source in checkpoint.sources.items():
        want = source_shape(source, expected[path])
        for name in source.names:
            used.add(name)
            if name not in checkpoint.index:
                missing.append(name)
            elif checkpoint.index[name].shape != want:
                wrong.append(f"{name} {checkpoint.index[name].shape}, not {want}")
    ignored = checkpoint.family.ignored
    tied = {"lm_head.weight", "model.transformer.ff_out.weight"}
    unexpected = [
        name
        for name in sorted(set(checkpoint.index) - used)
        if not name.endswith(_BUFFERS)
        and not name.startswith(ignored)
        and not (name in tied and getattr(checkpoint.config, "tied", True))
    ]
    problems = [
        f"{len(names)} {what}: {tensors.some(names)}"
        for what, names in (
            ("missing", missing),
            ("of the wrong shape", wrong),
            ("unexpected", unexpected),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{checkpoint.folder} does not hold the tensors of its config.json: "
            + "; ".join(problems)
        )


def _own_dtype(index: Mapping[str, tensors.Entry], sources: dict[str, Source]) -> str:
    """The dtype most of the checkpoint's elements have; float32 for float64."""
    sizes: dict[str, int] = {}
    for name in {name for source in sources.values() for name in source.names}:
        if name in index:
            entry = index[name]
            size = int(np.prod(entry.shape))
            sizes[entry.dtype.name] = sizes.get(entry.dtype.name, 0) + size
    dtype = max(sizes, key=lambda name: sizes[name]) if sizes else "float32"
    if dtype == "float64":
        return "float32"
    return dtype


def flat(params: Params) -> list[tuple[str, Any]]:
    """(path name, leaf) of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(path_name(path), leaf) for path, leaf in leaves]


def _folder(path: str | os.PathLike) -> pathlib.Path:
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"{str(path)!r} is no folder: give the path of a downloaded checkpoint "
            "(config.json, *.safetensors), or one of the embedded models: "
            f"{', '.join(embedded.NAMES)}"
        )
    return folder


def _shapes(family: architectures.Family, config: Any) -> Params:
    return jax.eval_shape(
        lambda key: family.module.init(config, key), jax.random.key(0)
    )


def _restored(folder, family, config, dtype, mesh) -> tuple[Any, Params]:
    """Configuration and parameters of a converted folder."""
    shapes = _shapes(family, config)
    if mesh is not None:
        shardings = placement.specs(shapes, mesh)
    else:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    if dtype is None:
        dtype = stored(folder)["params"]["embed"].dtype.name
    dtype = checked_dtype(dtype)
    target = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(
            shape.shape, dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )
    config = dataclasses.replace(config, dtype=dtype)
    return config, restore(folder, target)["params"]


def path_name(path: tuple) -> str:
    """ "layer_0/mlp/up/kernel" for a key path of the parameter tree."""
    return "/".join(str(key.key) for key in path)
