"""What the config.json of a causal model means: Llama, Mistral, Qwen, Gemma, GPT-2.

The defaults are those of the class that each `model_type` names: a file that leaves a
field out was written by that class, or for it.
"""

import math
from typing import Any

from pdecode.checkpoints.fields import (
    REFUSED,
    Fields,
    activation,
    eos_ids,
    rope,
    rope_by_layer,
    sliding,
)
from pdecode.models.config import Config, Experts


def sizes(
    fields: Fields,
    *,
    mlp: int | None,
    max_positions: int | None,
    kv_heads: int | None = None,
    kv_null: Any = None,
    head_dim: int | None = None,
    tied: bool = False,
    eos: int | None = None,
    is_causal: bool = True,
) -> dict[str, Any]:
    """What Llama-shaped configurations say in the same words; keywords are defaults.

    `kv_heads` None is one a query head; `kv_null` is what null stands for.
    """
    if is_causal:
        fields.expect("is_causal", True)
    fields.expect("per_layer_config", {})
    return dict(
        vocab_size=fields.need("vocab_size"),
        width=fields.need("hidden_size"),
        num_layers=fields.need("num_hidden_layers"),
        num_heads=fields.need("num_attention_heads"),
        num_kv_heads=fields.size("num_key_value_heads", kv_heads, null=kv_null),
        head_dim=fields.size("head_dim", head_dim),
        mlp_width=fields.size("intermediate_size", mlp),
        max_positions=fields.size("max_position_embeddings", max_positions),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        tied=fields.get("tie_word_embeddings", tied),
        eos_ids=eos_ids(fields, eos),
    )


def llama(fields: Fields) -> Config:
    bias = fields.get("attention_bias", False)
    common = sizes(fields, mlp=11_008, max_positions=2048, eos=2)
    return Config(
        **common,
        rope=rope(fields, common["max_positions"]),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.get("mlp_bias", False),
        name="llama",
    )


def mistral(fields: Fields) -> Config:
    common = sizes(
        fields,
        mlp=14_336,
        max_positions=131_072,
        kv_heads=8,
        kv_null=REFUSED,
        eos=2,
    )
    return Config(
        **common,
        rope=rope(fields, common["max_positions"]),
        activation=activation(fields, "hidden_act", "silu"),
        window=fields.size("sliding_window", 4096, null=None),
        name="mistral",
    )


def _window(fields: Fields, slides: tuple[bool, ...], window: int | None) -> dict:
    """`Config` fields of layers that slide, if `window` is one."""
    if window is not None:
        return dict(window=window, sliding=slides)
    if any(slides):
        raise ValueError(
            "config.json has layer_types with sliding_attention, but no sliding_window "
            "that is in use"
        )
    return {}


def _qwen_window(fields: Fields, num_layers: int, is_moe: bool) -> dict[str, Any]:
    """Sliding layers only if switched on, from max_window_layers up (MoE: all)."""
    is_on = fields.get("use_sliding_window", False)
    window = fields.size("sliding_window", 4096, null=None) if is_on else None
    fields.has("sliding_window")
    first = 0 if is_moe else fields.get("max_window_layers", 28)
    fields.has("max_window_layers")
    above = tuple(window is not None and i >= first for i in range(num_layers))
    return _window(
        fields, above if is_moe else sliding(fields, num_layers, above), window
    )


def qwen(fields: Fields, *, name: str, norm: bool, bias: bool, **facts) -> Config:
    """A Qwen 2 (`bias`) or Qwen 3 (`norm`), or what `facts` make of one."""
    is_moe = facts.get("experts") is not None
    is_causal = facts.get("attention", "causal") == "causal"
    if is_causal and (is_moe or not norm) and fields.raw.get("head_dim", 1) is None:
        fields.refuse("head_dim", "leave it out")  # no field of their classes
    common = sizes(
        fields,
        mlp=22_016,
        max_positions=32_768,
        kv_heads=4 if is_moe else 32,
        kv_null=REFUSED if is_moe else None,
        head_dim=128 if norm and not is_moe else None,
        is_causal=is_causal,
    )
    return Config(
        **common,
        **_qwen_window(fields, common["num_layers"], is_moe),
        rope=rope(fields, common["max_positions"]),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias and norm,
        qk_norm=norm,
        name=name,
        **facts,
    )


def qwen2(fields: Fields) -> Config:
    return qwen(fields, name="qwen2", norm=False, bias=True)


def qwen3(fields: Fields, name: str = "qwen3", **facts) -> Config:
    bias = fields.get("attention_bias", False)
    return qwen(fields, name=name, norm=True, bias=bias, **facts)


def experts(fields: Fields, width: str) -> Experts:
    return Experts(
        num_experts=fields.need(fields.name("num_experts", "num_local_experts")),
        top_k=fields.need("num_experts_per_tok"),
        width=fields.need(width),
        normalized=fields.get("norm_topk_prob", False),
    )


def qwen3_moe(fields: Fields, name: str = "qwen3_moe", **facts) -> Config:
    fields.expect("decoder_sparse_step", 1)
    fields.expect("mlp_only_layers", [])
    mixed = experts(fields, "moe_intermediate_size")
    return qwen3(fields, name, experts=mixed, **facts)


def gpt2(fields: Fields) -> Config:
    fields.off("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    fields.off("add_cross_attention")
    fields.expect("is_causal", True)
    fields.expect("per_layer_config", {})
    width = fields.need(fields.name("n_embd", "hidden_size"))
    is_scaled = fields.get("scale_attn_weights", True)
    return Config(
        vocab_size=fields.need("vocab_size"),
        width=width,
        num_layers=fields.need(fields.name("n_layer", "num_hidden_layers")),
        num_heads=fields.need(fields.name("n_head", "num_attention_heads")),
        mlp_width=fields.size("n_inner") or 4 * width,
        rope=None,
        max_positions=fields.size(
            fields.name("n_positions", "max_position_embeddings"), 1024
        ),
        norm="layer",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        activation=activation(fields, "activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
        qkv_bias=True,
        out_bias=True,
        query_scale=None if is_scaled else 1.0,
        tied=fields.get("tie_word_embeddings", True),
        eos_ids=eos_ids(fields, 50_256),
        name="gpt2",
    )


def _soft_cap(fields: Fields, name: str, default: float | None) -> float | None:
    cap = fields.get(name, default, null=None)
    if cap is not None and (not isinstance(cap, (int, float)) or cap <= 0):
        fields.refuse(name, "it must be a number above 0")
    return cap


def _gemma(fields: Fields, *, max_positions: int, every: int, cap, **facts) -> Config:
    """Gemma: scaled embedding, norms by 1 + w on both sides, sliding layers."""
    fields.expect("use_bidirectional_attention", False)
    fields.off("attention_bias")
    fields.has("hidden_act")  # published beside hidden_activation, which counts
    common = sizes(
        fields,
        mlp=9216,
        max_positions=max_positions,
        kv_heads=4,
        kv_null=REFUSED,
        head_dim=256,
        tied=True,
        eos=1,
    )
    pattern = tuple((i + 1) % every != 0 for i in range(common["num_layers"]))
    scale = fields.get("query_pre_attn_scalar", 256.0)
    if scale <= 0:
        fields.refuse("query_pre_attn_scalar", "it must be a number above 0")
    return Config(
        **common,
        **_window(
            fields,
            sliding(fields, common["num_layers"], pattern),
            fields.size("sliding_window", 4096, null=None),
        ),
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        embed_scale=math.sqrt(common["width"]),
        norm_offset=1.0,
        post_norms=True,
        query_scale=float(scale) ** -0.5,
        logit_soft_cap=_soft_cap(fields, "final_logit_softcapping", cap),
        **facts,
    )


def gemma2(fields: Fields) -> Config:
    positions = fields.size("max_position_embeddings", 8192)
    return _gemma(
        fields,
        max_positions=8192,
        every=2,
        cap=30.0,
        rope=rope(fields, positions),
        attention_soft_cap=_soft_cap(fields, "attn_logit_softcapping", 50.0),
        name="gemma2",
    )


def gemma3(fields: Fields) -> Config:
    fields.expect("attn_logit_softcapping")
    every = fields.size("sliding_window_pattern", 6)
    if fields.get("layer_types") is None:
        # An older spelling that its class no longer reads.
        fields.expect("_sliding_window_pattern", every)
    fields.has("_sliding_window_pattern")
    positions = fields.size("max_position_embeddings", 131_072)
    full, local = rope_by_layer(fields, positions)
    return _gemma(
        fields,
        max_positions=131_072,
        every=every,
        cap=None,
        rope=full,
        rope_sliding=local,
        qk_norm=True,
        name="gemma3",
    )
