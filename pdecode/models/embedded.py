"""The small trained models that come with the package, by name.

Of Python code: `target` autoregressive, `drafter` the same task much cheaper, `heads`
blockwise heads on `target`, `diffusion` masked diffusion of the target's size. Of the
tasks of `pdecode.data.parallelbench`: `task_masked`, masked diffusion, and
`task_block`, the same in blocks. Each is a safetensors file (bfloat16) in
pdecode/models/weights with a JSON record of what made it and what it reaches;
`config_of` names the config that retrains it.

`digits_raster`, `digits_raster2d`, `digits_order` and `digits_masked` draw handwritten
digits (trained by their configs, stored by `pdecode.train.embed`). `digits` is the
first of them that a method takes.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors

from pdecode.contracts import Params, PromptTokens
from pdecode.models import (
    adapters,
    amphista_heads,
    clover_heads,
    condensers,
    cross_layers,
    denoiser,
    digits,
    draft_layers,
    draft_modules,
    falcon_layers,
    filters,
    frames,
    hydra_heads,
    int8,
    jakiro_layers,
    judges,
    medusa_heads,
    noised,
    staged,
    transfers,
    transformer,
    two_pass,
    visual_layers,
)
from pdecode.models import bytes as byte_text
from pdecode.models import config as config_module
from pdecode.models import draft_heads as heads_module

TASKS = ("task_masked", "task_block")
# One name for models of one kind of data, of which a method takes the first it can.
SETS = {"digits": ("digits_raster", "digits_order", "digits_masked", "digits_raster2d")}
NAMES = ("target", "drafter", "heads", "diffusion", *TASKS, *SETS["digits"])
DTYPES = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}
FOLDER = pathlib.Path(__file__).parent / "weights"


def load(
    name: str, folder: pathlib.Path = FOLDER, *, dtype: str | None = None
) -> tuple[Any, Params, Any]:
    """(model, params, tokenizer); the first of what is no model is its record.

    In float32, or `dtype`, which may end in +int8 or +int8kv (`models.int8`; heads stay
    as they are).

    `name` may also be the folder of a finished run. Equal configurations give the same
    (hashable) model object. Raises ValueError, in one line: an unknown name (lists the
    known ones), or weights that are missing, truncated or not the record's.
    """
    params, record = read_from(name) if is_run(name) else read(name, folder)
    numbers = config_module.held(dtype)
    dtype = numbers.dtype or "float32"
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    made = KINDS[holds(record)["kind"]](record, dtype)
    return *int8.applied(numbers, made, params), tokenizer_of(record)


def tokenizer_of(record: dict) -> Any:
    """Of the data that a record's model was trained on."""
    config = record["config"]
    known = {"digits": digits.tokenizer, "frames": frames.tokenizer}
    # Rows that a digits model wrote are digits too.
    if config["model"]["vocab_size"] == digits.VOCAB_SIZE:
        known["rows"] = digits.tokenizer
    return known.get(config.get("data"), byte_text.tokenizer)


def holds(record: dict) -> dict:
    """What a record's parameters are: {"kind": a key of KINDS, ...}.

    Raises ValueError for a kind that this version does not know.
    """
    if "holds" in record:
        found = record["holds"]
    elif record["objective"] == "blockwise_heads":  # of records before the field
        found = {"kind": "draft_heads", "num_heads": record["config"]["num_heads"]}
    else:
        found = {"kind": "transformer"}
    if found["kind"] not in KINDS:
        raise ValueError(f"holds {found['kind']!r}; known: {', '.join(KINDS)}")
    return found


def is_run(name: str | os.PathLike) -> bool:
    """Whether `name` is a folder with the result of a training run."""
    return (pathlib.Path(name) / "weights.json").is_file()


def check_drafter(model: str, params: Params, drafter: str) -> None:
    """ValueError where heads or a layer were trained on another model than they serve.

    By the hash of the weights where both records are there, and by their width.
    """
    theirs = _record(drafter)["config"]["model"]["width"]
    width = params["embed"].shape[1]
    if theirs != width:
        raise ValueError(
            f"{drafter} was trained on a model of width {theirs}, but {model} has "
            f"width {width}: give the model that it was trained on"
        )
    known = [name for name in (model, drafter) if name in NAMES or is_run(name)]
    if len(known) < 2:
        return
    origin = _record(drafter).get("frozen", {}).get("target")
    if origin is not None and origin["sha256"] != _record(model)["sha256"]:
        raise ValueError(
            f"{drafter} was trained on {origin['from']} (weights "
            f"{origin['sha256'][:12]}), but {model} has weights "
            f"{_record(model)['sha256'][:12]}: give the model that it was trained on"
        )


def record_of(name: str | os.PathLike) -> dict:
    """The record of an embedded model's name, or of a folder that a run wrote.

    ValueError where there is none.
    """
    if not is_run(name) and name not in NAMES:
        raise ValueError(f"{name} is no folder of a finished run and no embedded model")
    return _record(str(name))


def _record(name: str) -> dict:
    folder, stem = (pathlib.Path(name), "weights") if is_run(name) else (FOLDER, name)
    return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))


def read(name: str, folder: pathlib.Path = FOLDER) -> tuple[dict, dict]:
    """(params with float32 numpy leaves, record) of an embedded model.

    Errors as in `load`.
    """
    if name not in NAMES:
        raise ValueError(f"unknown embedded model {name!r}; known: {', '.join(NAMES)}")
    try:
        return read_pair(folder, name)
    except ValueError as error:
        raise ValueError(
            f"embedded model {name!r}: {error}; install pdecode again, or retrain with "
            f"pdecode train --config {config_of(name)}"
        ) from None


def config_of(name: str) -> str:
    """The config that retrains an embedded model."""
    is_whole = name in (*TASKS, *SETS["digits"])
    return f"configs/{name}.py" if is_whole else f"configs/byte_{name}.py"


def read_from(source: str | os.PathLike) -> tuple[dict, dict]:
    """`read` of an embedded model's name, or of a folder that a training run wrote.

    Adapters come added to the model that they were trained on. ValueError where that
    one is not there, or another.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        return read(str(source))
    params, record = read_pair(folder, "weights")
    found = holds(record).get("adapters")
    if found is None:
        return params, record
    origin = record["start_from"]
    try:
        base, theirs = read_from(origin["from"])
    except ValueError as error:
        raise ValueError(
            f"{folder} holds adapters on {origin['from']}: {error}"
        ) from None
    if theirs["sha256"] != origin["sha256"]:
        raise ValueError(
            f"{folder} holds adapters on {origin['from']} with weights "
            f"{origin['sha256'][:12]}, but there are weights {theirs['sha256'][:12]}"
        )
    return adapters.merged(adapters.joined(base, params, found["scale"])), record


def read_pair(folder: pathlib.Path, name: str) -> tuple[dict, dict]:
    """(params, record) of NAME.safetensors and NAME.json as `train.export` writes them.

    Raises ValueError, in one line, if a file is missing, truncated or not its record's.
    """
    weights, described = folder / f"{name}.safetensors", folder / f"{name}.json"
    for path in (weights, described):
        if not path.is_file():
            raise ValueError(f"{path.name} is missing from {folder}")
    try:
        record = json.loads(described.read_text(encoding="utf-8"))
        expected = record["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{described} is damaged") from None
    blob = weights.read_bytes()
    if hashlib.sha256(blob).hexdigest() != expected:
        raise ValueError(
            f"{weights} is damaged: its {len(blob)} bytes do not match the hash in "
            f"{described.name}"
        )
    # safetensors' own numpy loader does not know bfloat16.
    flat = {
        tensor: np.frombuffer(view["data"], DTYPES[view["dtype"]]).reshape(
            view["shape"]
        )
        for tensor, view in safetensors.deserialize(blob)
    }
    return unflatten(flat), record


def unflatten(flat: dict[str, np.ndarray]) -> dict:
    """{"layer_0/mlp/up/kernel": array, ...} as a tree of dicts with float32 leaves."""
    tree: dict = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = np.asarray(leaf, np.float32)
    return tree


def transformer_config(record: dict) -> transformer.Config:
    """The transformer's configuration out of a record."""
    fields = dict(record["config"]["model"])
    if "noise" in fields:  # what older records call `predicts`
        known = {"causal": "next", "absorbing": "masked", "uniform": "uniform"}
        fields["predicts"] = known[fields.pop("noise")]
    for name, kind in (
        ("rope", config_module.Rope),
        ("rope_sliding", config_module.Rope),
        ("experts", config_module.Experts),
    ):
        if fields.get(name) is not None:
            fields[name] = kind(**fields[name])
    return config_module.Config(**fields)


def _network(module: Any) -> Callable:
    return lambda record, dtype: module.make_model(
        dataclasses.replace(transformer_config(record), dtype=dtype)
    )


# What a record's parameters may be -> what decodes with them, out of the record.
KINDS = {
    "transformer": _network(transformer),
    "two_pass": _network(two_pass),
    "noised": lambda record, dtype: noised.make_model(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        tuple(map(tuple, holds(record)["codes"])),
    ),
    "staged": lambda record, dtype: staged.make_net(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        staged.Grid(*holds(record)["grid"]),
        tuple(map(tuple, holds(record)["slices"])),
    ),
    "draft_layer": lambda record, dtype: draft_layers.make_layer(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["num_layers"],
    ),
    "jakiro_layer": lambda record, dtype: jakiro_layers.make_layer(
        dataclasses.replace(transformer_config(record), dtype=dtype)
    ),
    "block_layer": lambda record, dtype: falcon_layers.make_layer(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["block_len"],
        holds(record)["num_recurrent"],
    ),
    "fused_layer": lambda record, dtype: draft_layers.make_fused(
        dataclasses.replace(
            transformer_config(record), dtype=dtype, taps=tuple(holds(record)["taps"])
        )
    ),
    "visual_layer": lambda record, dtype: visual_layers.make_layer(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        condensers.read(holds(record)),
        holds(record)["num_ahead"],
    ),
    "draft_modules": lambda record, dtype: draft_modules.make_modules(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["num_modules"],
        holds(record)["shared"],
    ),
    "cross_layers": lambda record, dtype: cross_layers.make_layer(
        dataclasses.replace(transformer_config(record), dtype=dtype)
    ),
    "medusa_heads": lambda record, dtype: medusa_heads.make_heads(
        holds(record)["num_heads"], holds(record)["num_blocks"]
    ),
    "hydra_heads": lambda record, dtype: hydra_heads.make_heads(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["num_heads"],
        holds(record).get("num_layers", 1),
        holds(record).get("prefix_attention", False),
    ),
    "clover_heads": lambda record, dtype: clover_heads.make_heads(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["num_heads"],
        holds(record)["num_layers"],
    ),
    "amphista_heads": lambda record, dtype: amphista_heads.make_heads(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["num_heads"],
    ),
    "draft_heads": lambda record, dtype: heads_module.make_heads(
        holds(record)["num_heads"]
    ),
    "denoiser": lambda record, dtype: denoiser.make_net(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        holds(record)["patch"],
    ),
    "prompt_tokens": lambda record, dtype: PromptTokens(
        holds(record)["num_tokens"], holds(record)["token"]
    ),
    "transfer": lambda record, dtype: transfers.make_transfer(
        dataclasses.replace(transformer_config(record), dtype=dtype),
        tuple(holds(record)["layers"]),
    ),
    "filter": lambda record, dtype: filters.make_filter(holds(record)["block_length"]),
    "judge": lambda record, dtype: judges.LINEAR,
}
