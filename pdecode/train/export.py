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

from pdecode import files
from pdecode.data import packing, snippets
from pdecode.models import embedded
from pdecode.models.config import Config
from pdecode.train import evaluate, ngram
from pdecode.train.config import TrainConfig


def flatten(params: Any) -> dict[str, np.ndarray]:
    """A tree of dicts as {"layer_0/mlp/up/kernel": array, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(k.key) for k in path): np.asarray(x) for path, x in leaves}


def model_settings(model: Config) -> dict:
    """The fields of a model's configuration that are not the defaults of its sizes.

    What is left out means the default, so records outlive fields that come later.
    """
    sizes = ("vocab_size", "width", "num_layers", "num_heads")
    base = Config(**{field: getattr(model, field) for field in sizes})
    fields, defaults = dataclasses.asdict(model), dataclasses.asdict(base)
    return {k: v for k, v in fields.items() if k in sizes or v != defaults[k]}


def describe(config: TrainConfig, params: Any, **facts: Any) -> dict:
    """The record of a run: what made the weights, and what they reach."""
    return {
        "name": config.name,
        "objective": config.objective,
        "num_params": sum(x.size for x in jax.tree.leaves(params)),
        **facts,
        "config": {
            **dataclasses.asdict(config),
            "model": model_settings(config.model),
        },
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
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
    text = json.dumps(record, indent=1) + "\n"
    # If the second file is lost the pair's hashes disagree, and reading it says so.
    write_bytes(pathlib.Path(folder) / f"{name}.safetensors", blob)
    write_bytes(pathlib.Path(folder) / f"{name}.json", text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with files.replacing(path) as file:
        file.write(content)


def figures(config: TrainConfig, params, frozen, tokens, max_rows=None) -> dict:
    """What a model reaches on a token stream uint16 [N]; max_rows bounds the work."""
    sizes = {"row_len": config.row_len, "max_rows": max_rows}
    if config.objective == "blockwise_heads":
        bits = evaluate.blockwise_heads(config.model, params, frozen, tokens, **sizes)
        return {"bits_per_token_by_head": bits}
    function = getattr(evaluate, config.objective)
    bits = function(config.model, params, tokens, **sizes)
    is_bound = config.objective == "masked_diffusion"
    return {"bits_per_byte": bits} | ({"is_upper_bound": True} if is_bound else {})


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

    The figures are those of the stored weights, on the validation stream and on the
    held-out snippets, with a Kneser-Ney 5-gram's on the same text beside them.
    `streams` are the training and validation streams the run was made with, `command`
    is what reproduces it.
    """
    params, record = embedded.read_pair(pathlib.Path(workdir), "weights")
    rounded = jax.tree.map(
        lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params
    )
    frozen = {}
    if config.objective == "blockwise_heads":
        assert config.init_from is not None, "training needed their target"
        frozen, _ = embedded.read_from(config.init_from)
    training, validation = streams
    heldout = packing.stream(snippets.text())
    record["validation"] = figures(config, rounded, frozen, validation)
    record["heldout"] = figures(config, rounded, frozen, heldout)
    record["config"]["data_dir"] = None  # a place on one machine; the hash is the data
    record["command"] = command
    orders = ngram.fit(training)
    bits, discounts = ngram.bits_per_byte(orders, validation)
    record["ngram"] = {
        "model": "interpolated Kneser-Ney, 5 bytes, discounts tuned on validation",
        "validation_bits_per_byte": bits,
        "heldout_bits_per_byte": ngram.bits_per_byte(orders, heldout, discounts)[0],
        "discounts": discounts,
    }
    write(folder, name, rounded, record, dtype=ml_dtypes.bfloat16)
    return record
