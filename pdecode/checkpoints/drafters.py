"""Published Medusa and EAGLE heads, read into parameter trees.

Layouts as in the authors' repositories. Only safetensors: the `.pt` and `.bin` files
that some heads come as are pickles, which run code when they are loaded.
"""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pdecode.checkpoints import tensors
from pdecode.contracts import Params


class Medusa(NamedTuple):
    """Medusa heads: Cai et al., 2024, arXiv:2401.10774.

    Head k is `num_blocks` residual blocks x + silu(x @ kernel + bias), then logits
    x @ head[k].T. Its first head predicts the token after the next one.
    """

    params: Params  # {"block_i": {"kernel" [K, E, E], "bias" [K, E]}, "head" [K, V, E]}
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

    def stacked(depth: int, leaf: str) -> np.ndarray:
        missing = [k for k in range(num_heads) if (k, depth, leaf) not in found]
        if missing:
            raise ValueError(f"{folder}: heads {missing} lack {leaf} at depth {depth}")
        values = [tensors.read(found[k, depth, leaf]) for k in range(num_heads)]
        return np.stack([value.T if leaf == "weight" else value for value in values])

    params: dict[str, Any] = {
        f"block_{depth}": {
            "kernel": jnp.asarray(stacked(depth, "weight")),
            "bias": jnp.asarray(stacked(depth, "bias")),
        }
        for depth in range(num_blocks)
    }
    params["head"] = jnp.asarray(stacked(num_blocks, "head"))
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
