"""Weights as safetensors with a JSON record beside them, written whole or not at all.

`pdecode.models.embedded` reads what this module writes.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from pdecode.data import packing, snippets
from pdecode.data.texts import Text
from pdecode.models import embedded
from pdecode.models.config import Config
from pdecode.train import folder as folders
from pdecode.train import ngram, objectives, sources
from pdecode.train import settings as configs
from pdecode.train.config import TrainConfig

MODEL = "model"  # the folder, in a run's, of the model that was trained along


def flatten(params: Any) -> dict[str, np.ndarray]:
    """A tree of dicts as {"layer_0/mlp/up/kernel": array, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(k.key) for k in path): np.asarray(x) for path, x in leaves}


def model_settings(model: Config) -> dict:
    """The fields that make a model's configuration, without those at their defaults.

    What is left out means the default, so records outlive fields that come later.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    made = configs.declared(model)
    kept = {name for name, value in made.items() if value != defaults[name]}
    return {k: v for k, v in dataclasses.asdict(model).items() if k in kept}


def settings(config: TrainConfig) -> dict:
    """A config as JSON keeps it."""
    plain = dataclasses.asdict(config) | {"model": model_settings(config.model)}
    return json.loads(json.dumps(plain))


def describe(
    config: TrainConfig, params: Any, *, num_devices: int = 1, **facts: Any
) -> dict:
    """The record of a run: what made the weights, and what they reach."""
    return {
        "name": config.name,
        "objective": config.objective,
        "holds": objectives.of(config).holds(config),
        "num_params": sum(x.size for x in jax.tree.leaves(params)),
        **facts,
        "config": settings(config),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": f"{num_devices} x {jax.devices()[0].device_kind}",
    }


def write(
    folder: str | os.PathLike, name: str, params: Any, record: dict, *, dtype: Any
) -> None:
    """`name`.safetensors and `name`.json in a folder; the record holds the file's hash.

    `dtype` is the stored one: float32, or bfloat16, which halves the file and keeps
    eight bits of mantissa.
    """
    flat = {k: v.astype(dtype) for k, v in flatten(params).items()}
    blob = safetensors.numpy.save(flat)
    record = {**record, "sha256": hashlib.sha256(blob).hexdigest()}
    # If the second file is lost the pair's hashes disagree, and reading it says so.
    folders.write_bytes(pathlib.Path(folder) / f"{name}.safetensors", blob)
    folders.write_json(pathlib.Path(folder) / f"{name}.json", record)


def beside(config: TrainConfig, workdir: pathlib.Path, params, record: dict) -> dict:
    """Writes the model that was trained along, if any, as a run in the run's folder.

    Returns what changes in the record of the run, whose target this is from now on.
    """
    trained = objectives.find(config.objective).model
    if trained is None:
        return {}
    folder, model = workdir / MODEL, trained(params)
    folder.mkdir(exist_ok=True)
    count = sum(x.size for x in jax.tree.leaves(model))
    own = {**record, "holds": {"kind": "transformer"}, "num_params": count}
    write(folder, "weights", model, own, dtype=np.float32)
    sha256 = embedded.record_of(folder)["sha256"]
    target = {"from": str(folder), "sha256": sha256}
    frozen = record["frozen"]
    return {"frozen": {**frozen, "target": target}, "original": frozen["target"]}


def figures(config: TrainConfig, params, frozen, text: Text, **sizes: Any) -> dict:
    """What a model reaches on a text; `sizes` as in `Objective.figures`."""
    objective = objectives.of(config)
    sizes = {"row_len": config.row_len, **sizes}
    return objective.figures(config, params, frozen, text, **sizes)


def as_stored(params: Any) -> Any:
    """Parameters as an embedded model has them: bfloat16, in float32."""
    return jax.tree.map(
        lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params
    )


def embed(
    config: TrainConfig,
    workdir: str | os.PathLike,
    name: str,
    streams: Sequence[np.ndarray],
    *,
    command: str,
    folder: pathlib.Path = embedded.FOLDER,
) -> dict:
    """Stores a finished run as an embedded model, in bfloat16, and returns its record.

    The figures are those of the stored weights, on the validation stream and on what
    was held out: of code the snippets, with a Kneser-Ney 5-gram's on the same text
    beside them. `streams` are the training and validation streams the run was made
    with, and the held-out one of digits; `command` is what reproduces it.
    """
    params, record = embedded.read_from(workdir)
    if config.adapters is not None:  # what is stored is the whole model
        config = dataclasses.replace(config, adapters=None)
        record["holds"] = objectives.of(config).holds(config)
        record["config"]["adapters"] = None
        record["num_params"] = sum(leaf.size for leaf in jax.tree.leaves(params))
    rounded = as_stored(params)
    found = sources.read(config, None)
    frozen = {role: found[f"frozen.{role}"].params for role in config.frozen}
    training, validation, *rest = streams
    heldout = rest[0] if rest else packing.stream(snippets.text())
    length = config.own_rows
    for split, tokens in (("validation", validation), ("heldout", heldout)):
        text = Text(tokens, split, config.scored_unit, config.given_ids, length)
        record[split] = figures(config, rounded, frozen, text)
    record["config"]["data_dir"] = None  # a place on one machine; the hash is the data
    record["command"] = command
    named = {"train": training, "validation": validation, "heldout": heldout}
    if length is not None:
        record["text"] = {
            name: Text(
                tokens, name, config.scored_unit, config.given_ids, length
            ).describe()
            for name, tokens in named.items()
        }
    if config.data is None:
        record["ngram"] = _ngram(training, validation, heldout)
    write(folder, name, rounded, record, dtype=ml_dtypes.bfloat16)
    return record


def _ngram(training, validation, heldout) -> dict:
    """What a Kneser-Ney 5-gram reaches on the same texts."""
    orders = ngram.fit(training)
    bits, discounts = ngram.bits_per_byte(orders, validation)
    return {
        "model": "interpolated Kneser-Ney, 5 bytes, discounts tuned on validation",
        "validation_bits_per_byte": bits,
        "heldout_bits_per_byte": ngram.bits_per_byte(orders, heldout, discounts)[0],
        "discounts": discounts,
    }
