"""Published Medusa and EAGLE heads, read into parameter trees.

Layouts as in the authors' repositories. Only safetensors: the `.pt` and `.bin` files
that some heads come as are pickles, which run code when they are loaded.
"""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pdecode.checkpoints import tensors
from pdecode.contracts import DraftHeads, DraftLayer, Params
from pdecode.models import draft_layers
from pdecode.models import medusa_heads as heads_of
from pdecode.models.config import Config
from pdecode.sampling import BANNED


class Medusa(NamedTuple):
    """Medusa heads: Cai et al., 2024, arXiv:2401.10774.

    Parameters as in `models.medusa_heads`, each head's matrix whole.
    """

    params: Params
    num_heads: int
    num_blocks: int


class Eagle(NamedTuple):
    """An EAGLE drafter: Li et al., 2024, arXiv:2401.15077; 2025, arXiv:2503.01840.

    Version 1 (EAGLE and EAGLE-2) reads the target's last hidden state, joins it with
    the embedding of the next token through `fc` [2E, E] and uses the target's head.
    Version 3 reads three hidden states through `fc` [3E, E], its layer sees
    [norm(embedding), norm(state)] of width 2E, and it has a head over a smaller
    vocabulary: draft id i is target id i + d2t[i].
    """

    params: Params
    config: dict[str, Any]  # the head's config.json
    version: int


def medusa_heads(folder: str | os.PathLike) -> tuple[DraftHeads, Params]:
    """A folder's Medusa heads as methods take them; errors as `medusa`."""
    found = medusa(folder)
    return heads_of.make_heads(found.num_heads, found.num_blocks), found.params


def eagle_layer(folder: str | os.PathLike, target: Config) -> tuple[DraftLayer, Params]:
    """A folder's EAGLE drafter, of a target of `target`, as methods take it.

    Embedding and, of version 1, head are the target's. What version 3 leaves out of its
    vocabulary is banned in a head over all of it, which costs more than its own would.
    Errors as `eagle`, and ValueError for another width than the target's.
    """
    found = eagle(folder)
    given, params = found.config, dict(found.params)
    width = given.get("hidden_size", target.width)
    if width != target.width:
        raise ValueError(
            f"{folder} has hidden_size={width}, but {target.name} has width "
            f"{target.width}: give the model that it was trained on"
        )
    num_heads = given.get("num_attention_heads", target.num_heads)
    num_kv_heads = given.get("num_key_value_heads") or num_heads
    own = dataclasses.replace(
        target,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=given.get("head_dim") or width // num_heads,
        mlp_width=given.get("intermediate_size", target.mlp_width),
        norm_eps=given.get("rms_norm_eps", target.norm_eps),
        taps=draft_layers.default_taps(target.num_layers),
    )
    params.pop("embed", None)
    if found.version == 1:
        for unused in ("norm", "head", "d2t", "t2d"):
            params.pop(unused, None)
        num_layers = sum(name.startswith("layer_") for name in params)
        return draft_layers.make_layer(own, num_layers), params
    ids = params.pop("d2t", None)
    params.pop("t2d", None)
    if ids is not None:
        ids = np.arange(len(ids)) + np.asarray(ids)
        some, size = params["head"], target.vocab_size
        whole = jnp.zeros((size, width), some.dtype).at[ids].set(some)
        bias = jnp.full(size, BANNED, jnp.float32).at[ids].set(0.0)
        params |= {"head": whole, "head_bias": bias}
    return draft_layers.make_fused(own), params


# Roles whose published files are read without a conversion.
PUBLISHED = ("heads", "layer")


def is_published(folder: str | os.PathLike) -> bool:
    """Whether `folder` is one of files, and no run of ours and no embedded name."""
    from pdecode.models import embedded

    return os.path.isdir(folder) and not embedded.is_run(folder)


def published(role: str, folder: str, model: str) -> tuple[Any, Params]:
    """(record, params) of published heads or a layer, for the target named `model`.

    ValueError as `medusa_heads` and `eagle_layer`, and for a target of another kind
    than a transformer of ours.
    """
    if role == "heads":
        return medusa_heads(folder)
    from pdecode.checkpoints import loading
    from pdecode.models import embedded

    if embedded.is_run(model) or model in embedded.NAMES:
        config = embedded.transformer_config(embedded.record_of(model))
    else:
        config = loading.read_config(model)[1]
    if not isinstance(config, Config):
        raise ValueError(f"{folder} is a layer for transformers, but {model} is none")
    return eagle_layer(folder, config)


def medusa(folder: str | os.PathLike) -> Medusa:
    """Medusa heads of a folder, as a head file of its own or inside a whole model.

    Raises ValueError: no safetensors, heads of unequal depth, missing tensors.
    """
    index = tensors.index(folder, "medusa_lm_head")
    pattern = re.compile(r"(?:medusa_head\.)?(\d+)\.(\d+)\.(linear\.)?(weight|bias)")
    found: dict[tuple[int, int, str], tensors.Entry] = {}
    for name, entry in index.items():
        match = pattern.fullmatch(name)
        if match:
            head, depth, linear, kind = match.groups()
            leaf = kind if linear else "head"
            found[int(head), int(depth), leaf] = entry
    if not found:
        raise ValueError(
            f"{folder} has no Medusa heads: no tensor is named like 0.0.linear.weight "
            f"or medusa_head.0.0.linear.weight, but {tensors.some(sorted(index))}"
        )
    num_heads = 1 + max(head for head, _, _ in found)
    num_blocks = max(depth for _, depth, _ in found)

    def leaf(head: int, depth: int, kind: str) -> jnp.ndarray:
        if (head, depth, kind) not in found:
            raise ValueError(f"{folder}: head {head} lacks {kind} at depth {depth}")
        value = tensors.read(found[head, depth, kind])
        return jnp.asarray(value.T if kind == "weight" else value)

    params: dict[str, Any] = {}
    for head in range(num_heads):
        blocks = {
            f"block_{depth}": {
                "kernel": leaf(head, depth, "weight"),
                "bias": leaf(head, depth, "bias"),
            }
            for depth in range(num_blocks)
        }
        params[f"head_{head}"] = {**blocks, "head": leaf(head, num_blocks, "head")}
    return Medusa(params, num_heads, num_blocks)


_LAYER = {
    "attention_norm/weight": "input_layernorm.weight",
    "stream_norm/weight": "hidden_norm.weight",
    "mlp_norm/weight": "post_attention_layernorm.weight",
    **{
        f"attention/{ours}/{leaf}": f"self_attn.{theirs}_proj.{kind}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
        for leaf, kind in (("kernel", "weight"), ("bias", "bias"))
    },
    **{
        f"mlp/{name}/kernel": f"mlp.{name}_proj.weight"
        for name in ("gate", "up", "down")
    },
}
_OUTER = {
    "fc/kernel": "fc.weight",
    "fc/bias": "fc.bias",
    "embed": "embed_tokens.weight",
    "norm/weight": "norm.weight",
    "head": "lm_head.weight",
    "d2t": "d2t",
    "t2d": "t2d",
}
_NEEDED = ("fc/kernel", "attention/query/kernel", "mlp/down/kernel")


def eagle(folder: str | os.PathLike) -> Eagle:
    """An EAGLE drafter's folder; leaves that a version has not are absent.

    Parameters are named as a `transformer` layer's: {"layer_0": ..., "fc", "embed",
    "norm", "head", "d2t", "t2d"}.

    Raises ValueError: no safetensors or config.json, tensors missing or unexpected.
    """
    folder = pathlib.Path(folder)
    index = tensors.index(folder)
    # The authors' version 3 calls its one layer midlayer; converted, it is layers.0.
    is_mid = any(name.startswith("midlayer.") for name in index)
    version = 3 if is_mid or any("hidden_norm." in name for name in index) else 1
    known = dict(_OUTER)
    layers = {0} if is_mid else set()
    for name in index:
        match = re.match(r"layers\.(\d+)\.", name)
        if match:
            layers.add(int(match[1]))
    for layer in layers:
        prefix = "midlayer." if is_mid else f"layers.{layer}."
        for path, name in _LAYER.items():
            known[f"layer_{layer}/{path}"] = prefix + name
    unexpected = sorted(set(index) - set(known.values()))
    present = {path: name for path, name in known.items() if name in index}
    missing = [
        known.get(path, path)
        for path in ("fc/kernel", *(f"layer_0/{leaf}" for leaf in _NEEDED[1:]))
        if path not in present
    ]
    if missing or unexpected:
        raise ValueError(
            f"{folder} is no EAGLE drafter: missing {tensors.some(missing) or 'none'}; "
            f"unexpected {tensors.some(unexpected) or 'none'}"
        )
    params: dict = {}
    for path, name in present.items():
        value = tensors.read(index[name])
        *outer, last = path.split("/")
        place = params
        for key in outer:
            place = place.setdefault(key, {})
        if value.dtype == np.int64:
            value = value.astype(np.int32)
        place[last] = jnp.asarray(value.T if last == "kernel" else value)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json")
    return Eagle(params, json.loads(path.read_text(encoding="utf-8")), version)
