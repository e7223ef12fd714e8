"""What a transformer is, as one frozen, hashable record."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

NORMS = ("rms", "layer", "centered")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
ATTENTIONS = ("causal", "bidirectional", "block_causal")
PREDICTS = ("next", "masked", "uniform", "values")  # the last: numbers, no tokens
SCALINGS = ("linear", "llama3")
SCORES = ("softmax", "sigmoid")
DTYPES = ("float32", "bfloat16", "float16")  # that parameters are loaded in


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: Su et al., 2021, arXiv:2104.09864, halves paired (i, i + D/2).

    `scaling` None leaves the frequencies alone; "linear" divides them by `factor`
    (Chen et al., 2023, arXiv:2306.15595); "llama3" divides the low ones only, with a
    ramp between the two wavelengths original_max / low and original_max / high
    (Llama 3, arXiv:2407.21783). Only the first `fraction` of the pairs turns. With
    `dims` the first `dims` of a head's dimensions turn as a head of that size would.

    With `columns` places are cells of a grid, row by row (axial rotary positions: Heo
    et al., 2024, arXiv:2403.13298; LlamaGen, arXiv:2406.06525): the first half of the
    pairs turns by the row, the other by the column, each as a head of half the size.
    `before` places stand in front of the grid, such as a class, as if its rows had
    begun with them: in the end of a row above.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    dims: int | None = None
    columns: int | None = None  # of a grid; None: places of a line
    before: int = 0

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position turns each pair, float64 [(dims or head_dim) / 2].

        On a grid those that a row or a column turns each pair of its own half.
        """
        head_dim = self.dims or head_dim
        if self.columns is not None:
            head_dim //= 2
        freqs = self.theta ** (-np.arange(0, head_dim, 2) / head_dim)
        freqs[int(self.fraction * head_dim // 2) :] = 0.0
        if self.scaling == "linear":
            return freqs / self.factor
        if self.scaling == "llama3":
            turns = self.original_max_positions * freqs / (2 * math.pi)
            ramp = (turns - self.low_freq_factor) / (
                self.high_freq_factor - self.low_freq_factor
            )
            keep = np.clip(ramp, 0.0, 1.0)
            return keep * freqs + (1 - keep) * freqs / self.factor
        return freqs


@dataclasses.dataclass(frozen=True)
class Experts:
    """Mixture of experts in place of every MLP, routed per token and without a limit.

    Each token goes to the `top_k` experts of highest router score. Their weights are
    their scores, which sum to one if `normalized`, times `scale`. If `biased` a bias of
    each expert counts in the choice and not in the weight. Of `num_groups` the
    `top_groups` whose two best experts score highest are chosen first (DeepSeek-V3,
    arXiv:2412.19437). No expert has a capacity, so a token's output does not depend on
    what else is in the batch.
    """

    num_experts: int
    top_k: int
    width: int
    normalized: bool = True
    scores: str = "softmax"  # or "sigmoid": of each expert by itself
    biased: bool = False
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    shared_width: int = 0  # of an MLP beside them that every token goes through

    def __post_init__(self):
        if self.scores not in SCORES:
            raise ValueError(f"unknown scores {self.scores!r}; known: {SCORES}")
        groups = f"num_groups={self.num_groups}, top_groups={self.top_groups}"
        if self.num_groups < 1 or not 1 <= self.top_groups <= self.num_groups:
            raise ValueError(f"{groups}: choose at least one group, and at most all")
        size, rest = divmod(self.num_experts, self.num_groups)
        if self.num_groups > 1 and (rest or size < 2):
            raise ValueError(
                f"{groups}: num_experts={self.num_experts} must be that many groups of "
                "at least two"
            )
        if self.top_k > self.top_groups * size:
            raise ValueError(
                f"top_k={self.top_k} is more than the {self.top_groups * size} experts "
                "that are chosen from"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A decoder-only transformer. The defaults are a Llama without its sizes.

    Embedding, layers of norm, attention, norm, MLP on a residual stream, a last norm,
    and a linear head. Where they are 0, `num_kv_heads` is num_heads, `head_dim` is
    width / num_heads and `mlp_width` 4 * width.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0
    # Embedding and positions.
    rope: Rope | None = Rope()  # None: a learned table of max_positions
    rope_sliding: Rope | None = None  # of sliding layers; None: as the others
    max_positions: int | None = None
    embed_scale: float | None = None  # embeddings times this (Gemma: sqrt(width))
    # Layers.
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0  # RMS norm scales by offset + weight (Gemma: 1)
    post_norms: bool = False  # a norm on each branch's output too (Gemma)
    activation: str = "silu"
    gated: bool = True  # activation(gate x) * up x; else activation(up x)
    mlp_bias: bool = False
    experts: Experts | None = None
    dense_layers: int = 0  # the first ones, which have an MLP in place of experts
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # RMS norm of each query and key head before rotation
    query_scale: float | None = None  # of scores; None: head_dim ** -0.5
    attention_soft_cap: float | None = None
    window: int | None = None  # keys a sliding layer sees, itself included
    sliding: tuple[bool, ...] = ()  # by layer; empty: all, if window is set
    # Head.
    tied: bool = False  # the head's weight is the embedding
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    # What the model is to a decoder.
    attention: str = "causal"
    block_len: int | None = None  # of block_causal attention
    predicts: str = "next"
    shift: bool = False  # output at a slot predicts the next one, though not causal
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    taps: tuple[str, ...] = ()  # "embed", or "layer_i": the stream after layer i
    exits: tuple[int, ...] = ()  # layers after which the head may read, the last too
    dtype: str = "float32"  # of activations and cache; parameters keep their own
    name: str = "transformer"

    def __post_init__(self):
        put = object.__setattr__
        for field in ("vocab_size", "width", "num_layers", "num_heads"):
            _check_size(field, getattr(self, field), 1)
        for field in ("num_kv_heads", "head_dim", "mlp_width"):
            _check_size(field, getattr(self, field) or 0, 0)
        if not self.num_kv_heads:
            put(self, "num_kv_heads", self.num_heads)
        if not self.head_dim:
            if self.width % self.num_heads:
                raise ValueError(
                    f"num_heads={self.num_heads} must divide width={self.width}, "
                    "or give head_dim"
                )
            put(self, "head_dim", self.width // self.num_heads)
        if not self.mlp_width:
            put(self, "mlp_width", 4 * self.width)
        if not self.sliding:
            put(self, "sliding", (self.window is not None,) * self.num_layers)
        for field in ("sliding", "eos_ids", "taps", "exits"):
            put(self, field, tuple(getattr(self, field)))
        self._check()

    def _check(self):
        for field, known in (
            ("norm", NORMS),
            ("activation", ACTIVATIONS),
            ("attention", ATTENTIONS),
            ("predicts", PREDICTS),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"unknown {field} {value!r}; known: {known}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide "
                f"num_heads={self.num_heads}"
            )
        if self.rope is not None and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim={self.head_dim}")
        for rope in (self.rope, self.rope_sliding):
            if rope is not None:
                _check_rope(rope, self.head_dim)
        if self.mask_id is not None and not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"mask_id={self.mask_id} is no id of vocab_size={self.vocab_size}"
            )
        if self.rope is None and self.max_positions is None:
            raise ValueError("learned positions need max_positions")
        if len(self.sliding) != self.num_layers:
            raise ValueError(
                f"sliding names {len(self.sliding)} layers of {self.num_layers}"
            )
        if self.dense_layers and self.experts is None:
            raise ValueError(f"dense_layers={self.dense_layers} need experts elsewhere")
        if any(self.sliding) and self.window is None:
            raise ValueError("sliding layers need a window")
        if (self.attention == "block_causal") != (self.block_len is not None):
            raise ValueError(
                f"block_len={self.block_len} with attention={self.attention!r}: "
                "block_causal attention needs a block_len, no other has one"
            )
        if self.exits and (
            list(self.exits) != sorted({*self.exits, self.num_layers})
            or self.exits[0] < 1
            or self.exits[-1] != self.num_layers
            or self.shift
        ):
            raise ValueError(
                f"exits={self.exits} must rise from at least 1 to num_layers="
                f"{self.num_layers}, of a model without shift ({self.shift})"
            )
        for tap in self.taps:
            layer = tap.removeprefix("layer_")
            is_layer = tap != layer and layer.isdecimal()
            if tap != "embed" and not (is_layer and int(layer) < self.num_layers):
                raise ValueError(
                    f"unknown tap {tap!r}; known: embed, layer_0 .. "
                    f"layer_{self.num_layers - 1}"
                )


def _check_rope(rope: Rope, head_dim: int) -> None:
    if rope.scaling not in (None, *SCALINGS):
        raise ValueError(f"unknown rope scaling {rope.scaling!r}; known: {SCALINGS}")
    if rope.columns is None:
        if rope.before:
            raise ValueError(
                f"rope.before={rope.before} counts what is in front of a grid: give "
                "rope.columns, or leave it at 0"
            )
        return
    _check_size("rope.columns", rope.columns, 1)
    _check_size("rope.before", rope.before, 0)
    if (rope.dims or head_dim) % 4:
        raise ValueError(
            f"rope.columns={rope.columns} turns half of the pairs by row and half by "
            f"column: {rope.dims or head_dim} dimensions of a head must be a multiple "
            "of 4"
        )


class Held(NamedTuple):
    """How a model's numbers are held: what `dtype` says where a model is loaded."""

    dtype: str | None  # of activations, and of all that is not in int8; None: its own
    int8: bool = False  # weights of its layers
    int8kv: bool = False  # keys and values


def held(dtype: str | None) -> Held:
    """Of "bfloat16", "bfloat16+int8", "int8+int8kv", None; ValueError for others."""
    first, *more = (dtype or "").split("+")
    if first in ("int8", "int8kv"):
        first, more = "", [first, *more]
    named = (first or None) if dtype is None or more else first
    if not set(more) <= {"int8", "int8kv"} or len(set(more)) < len(more):
        raise ValueError(_unknown(dtype))
    if named is not None and named not in DTYPES:
        raise ValueError(_unknown(dtype))
    return Held(named, "int8" in more, "int8kv" in more)


def _unknown(dtype: object) -> str:
    return (
        f"dtype={dtype!r} must be one of {', '.join(DTYPES)}, alone or with +int8 "
        "(weights of layers) and +int8kv (keys and values) behind it"
    )


def checked_dtype(dtype: str) -> str:
    """`dtype` if parameters can be loaded in it, else a ValueError."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    return dtype


def _check_size(field: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{field}={value!r} must be an int of at least {low}")
