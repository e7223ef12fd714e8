"""Checkpoint families: what a config.json means, and which tensor is which parameter.

A family is two pure functions: `config(fields)` reads the published configuration into
ours, and `names(config)` maps each parameter path to the tensors it is made of. Adding
a family is adding both and a line to FAMILIES.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from pdecode.checkpoints import names
from pdecode.checkpoints.fields import Fields, activation, eos_ids, rope, sliding
from pdecode.models import diffusion_gemma, transformer
from pdecode.models.config import Config, Experts, Rope


class Family(NamedTuple):
    """How a published architecture is read. `module` has its `init`, `make_model`."""

    config: Callable[[Fields], Any]
    names: Callable[[Any], dict[str, names.Source]]
    module: ModuleType = transformer
    ignored: tuple[str, ...] = ()  # prefixes of tensors that text has no use for
    alias: tuple[str, str] | None = None  # a prefix, and one that may stand for it


def _sizes(fields: Fields) -> dict[str, Any]:
    """What every Llama-shaped configuration says in the same words."""
    fields.expect("quantization_config", {})
    fields.expect("attention_dropout", 0.0, 0)
    return dict(
        vocab_size=fields.need("vocab_size"),
        width=fields.need("hidden_size"),
        num_layers=fields.need("num_hidden_layers"),
        num_heads=fields.need("num_attention_heads"),
        num_kv_heads=fields.get("num_key_value_heads"),
        head_dim=fields.get("head_dim"),
        mlp_width=fields.get("intermediate_size"),
        max_positions=fields.get("max_position_embeddings"),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        tied=fields.get("tie_word_embeddings", False),
        eos_ids=eos_ids(fields),
    )


def _llama(fields: Fields) -> Config:
    bias = fields.get("attention_bias", False)
    return Config(
        **_sizes(fields),
        rope=rope(fields),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.get("mlp_bias", False),
        name="llama",
    )


def _mistral(fields: Fields) -> Config:
    return Config(
        **_sizes(fields),
        rope=rope(fields),
        activation=activation(fields, "hidden_act", "silu"),
        window=fields.get("sliding_window"),
        name="mistral",
    )


def _sliding(fields: Fields, num_layers: int) -> dict[str, Any]:
    """Qwen: sliding layers only if switched on, from max_window_layers up."""
    window, by_layer = fields.get("sliding_window"), sliding(fields)
    if not fields.get("use_sliding_window", False) or window is None:
        return {}
    first = fields.get("max_window_layers", num_layers)
    above = tuple(layer >= first for layer in range(num_layers))
    return dict(window=window, sliding=by_layer or above)


def _qwen(fields: Fields, *, name: str, norm: bool, bias: bool, **facts) -> Config:
    sizes = _sizes(fields)
    return Config(
        **sizes,
        **_sliding(fields, sizes["num_layers"]),
        rope=rope(fields),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias and norm,
        qk_norm=norm,
        name=name,
        **facts,
    )


def _qwen2(fields: Fields) -> Config:
    return _qwen(fields, name="qwen2", norm=False, bias=True)


def _qwen3(fields: Fields, name: str = "qwen3", **facts) -> Config:
    bias = fields.get("attention_bias", False)
    return _qwen(fields, name=name, norm=True, bias=bias, **facts)


def _experts(fields: Fields, width: str) -> Experts:
    return Experts(
        num_experts=fields.get("num_experts") or fields.need("num_local_experts"),
        top_k=fields.need("num_experts_per_tok"),
        width=fields.need(width),
        normalized=fields.get("norm_topk_prob", False),
    )


def _qwen3_moe(fields: Fields, name: str = "qwen3_moe", **facts) -> Config:
    fields.expect("decoder_sparse_step", 1)
    fields.expect("mlp_only_layers", [])
    experts = _experts(fields, "moe_intermediate_size")
    return _qwen3(fields, name, experts=experts, **facts)


def _absorbing(fields: Fields, **facts) -> dict[str, Any]:
    return dict(predicts="masked", mask_id=fields.need("mask_token_id"), **facts)


def _dream(fields: Fields) -> Config:
    """Dream: a Qwen2 that sees both ways and kept the autoregressive shift."""
    facts = _absorbing(fields, attention="bidirectional", shift=True)
    return _qwen(fields, name="dream", norm=False, bias=True, **facts)


def _sdar(fields: Fields) -> Config:
    """SDAR (Cheng et al., 2025, arXiv:2510.06303): a Qwen3, causal between blocks."""
    block_len = fields.get("block_size", fields.get("block_length", 4))
    facts = _absorbing(fields, attention="block_causal", block_len=block_len)
    if fields.get("num_experts") or fields.get("num_local_experts"):
        return _qwen3_moe(fields, "sdar_moe", **facts)
    return _qwen3(fields, "sdar", **facts)


def _llada(fields: Fields) -> Config:
    """LLaDA (Nie et al., 2025, arXiv:2502.09992), its block type "llama"."""
    fields.expect("block_type", "llama")
    fields.expect("layer_norm_type", "rms")
    fields.expect("rope", True)
    fields.expect("layer_norm_with_affine", True)
    fields.expect("block_group_size", 1)
    for name in (
        "alibi",
        "attention_layer_norm",
        "bias_for_layer_norm",
        "include_bias",
        "input_emb_norm",
        "scale_logits",
    ):
        fields.expect(name, False)
    heads = fields.need("n_heads")
    kv_heads = fields.get(
        "n_kv_heads", 1 if fields.get("multi_query_attention") else heads
    )
    width = fields.need("d_model")
    return Config(
        # The embedding may have more rows than the vocabulary has words.
        vocab_size=fields.get("embedding_size", fields.need("vocab_size")),
        width=width,
        num_layers=fields.need("n_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_width=fields.get(
            "mlp_hidden_size", int(fields.get("mlp_ratio", 4) * width)
        ),
        rope=Rope(theta=float(fields.get("rope_theta", 10_000.0))),
        activation=activation(fields, "activation_type", "silu"),
        qkv_bias=fields.get("include_qkv_bias", False),
        max_positions=fields.get("max_sequence_length"),
        norm_eps=fields.get("rms_norm_eps", 1e-5),
        tied=fields.get("weight_tying", True),
        eos_ids=eos_ids(fields),
        name="llada",
        **_absorbing(fields, attention="bidirectional"),
    )


def _llada_moe(fields: Fields) -> Config:
    """LLaDA-MoE (Zhu et al., 2025, arXiv:2509.24389)."""
    fields.expect("shared_expert_intermediate_size", 0)
    fields.expect("expert_bias", False)
    fields.expect("moe_router_score_function", "softmax")
    fields.expect("score_func", "softmax")
    fields.expect("partial_rotary_factor", 1, 1.0)
    frequency = fields.get("moe_layer_freq", 1)
    if set(frequency if isinstance(frequency, list) else [frequency]) != {1}:
        raise ValueError(f"config.json has moe_layer_freq={frequency}: only all ones")
    fields.get("dense_intermediate_size")
    bias = fields.get("attention_bias", False)
    return Config(
        **_sizes(fields),
        rope=rope(fields),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=fields.get("qk_layernorm", True),
        experts=_experts(fields, "expert_intermediate_size"),
        name="llada_moe",
        **_absorbing(fields, attention="bidirectional"),
    )


def _gpt2(fields: Fields) -> Config:
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    fields.expect("scale_attn_weights", True)
    fields.expect("reorder_and_upcast_attn", False)
    width = fields.need("n_embd")
    return Config(
        vocab_size=fields.need("vocab_size"),
        width=width,
        num_layers=fields.need("n_layer"),
        num_heads=fields.need("n_head"),
        mlp_width=fields.get("n_inner", 4 * width),
        rope=None,
        max_positions=fields.get("n_positions", 1024),
        norm="layer",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        activation=activation(fields, "activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
        qkv_bias=True,
        out_bias=True,
        tied=fields.get("tie_word_embeddings", True),
        eos_ids=eos_ids(fields),
        name="gpt2",
    )


def _gemma(fields: Fields, *, every: int, **facts) -> Config:
    """Gemma: scaled embedding, norms by 1 + w on both sides, sliding layers."""
    fields.expect("use_bidirectional_attention", False)
    fields.expect("attention_bias", False)
    sizes = _sizes(fields)
    layers = range(sizes["num_layers"])
    return Config(
        **{**sizes, "tied": fields.get("tie_word_embeddings", True)},
        sliding=sliding(fields) or tuple((layer + 1) % every != 0 for layer in layers),
        window=fields.get("sliding_window", 4096),
        activation=activation(
            fields,
            "hidden_activation" if fields.get("hidden_activation") else "hidden_act",
            "gelu_pytorch_tanh",
        ),
        embed_scale=math.sqrt(sizes["width"]),
        norm_offset=1.0,
        post_norms=True,
        query_scale=float(fields.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_soft_cap=fields.get("attn_logit_softcapping"),
        logit_soft_cap=fields.get("final_logit_softcapping"),
        **facts,
    )


def _gemma2(fields: Fields) -> Config:
    return _gemma(fields, every=2, rope=rope(fields), name="gemma2")


def _gemma3(fields: Fields) -> Config:
    every = fields.get(
        "sliding_window_pattern", fields.get("_sliding_window_pattern", 6)
    )
    local = fields.get("rope_local_base_freq", 10_000.0)
    both = fields.get("rope_parameters") or {}
    rope_sliding = (
        rope(fields, "sliding_attention")
        if "sliding_attention" in both
        else Rope(theta=float(local))
    )
    full = rope(fields, "full_attention")
    if not both and fields.get("rope_theta") is None:
        full = Rope(theta=1_000_000.0)
    return _gemma(
        fields,
        every=every,
        rope=full,
        rope_sliding=rope_sliding,
        qk_norm=True,
        name="gemma3",
    )


def _diffusion_gemma(fields: Fields) -> diffusion_gemma.Config:
    canvas_len = fields.need("canvas_length")
    fields.expect("tie_word_embeddings", True)
    eos = eos_ids(fields)
    text = Fields(fields.need("text_config"))
    text.expect("attention_bias", False)
    text.expect("tie_word_embeddings", True)
    text.expect("use_bidirectional_attention", "vision", False)
    slides = sliding(text)
    if not slides or slides[-1]:
        raise ValueError("config.json's layer_types must end with full_attention")
    heads, head_dim = text.need("num_key_value_heads"), text.need("head_dim")
    # Full layers differ; the sizes stand under the index of any of them, or as global.
    own = text.get("per_layer_config", {}).get(str(slides.index(False)), {})
    turning = text.get("rope_parameters", {})
    local = turning.get("sliding_attention", {})
    full = turning.get("full_attention", {})
    return diffusion_gemma.Config(
        vocab_size=text.need("vocab_size"),
        width=text.need("hidden_size"),
        num_heads=text.need("num_attention_heads"),
        num_kv_heads=heads,
        head_dim=head_dim,
        full_num_kv_heads=own.get(
            "num_key_value_heads", text.get("num_global_key_value_heads", heads)
        ),
        full_head_dim=own.get("head_dim", text.get("global_head_dim", 512)),
        mlp_width=text.need("intermediate_size"),
        experts=Experts(
            text.need("num_experts"),
            text.need("top_k_experts"),
            text.need("moe_intermediate_size"),
        ),
        sliding=slides,
        window=text.need("sliding_window"),
        canvas_len=canvas_len,
        rope_sliding=Rope(theta=float(local.get("rope_theta", 10_000.0))),
        rope_full=Rope(
            theta=float(full.get("rope_theta", 1_000_000.0)),
            fraction=float(full.get("partial_rotary_factor", 0.25)),
        ),
        norm_eps=text.get("rms_norm_eps", 1e-6),
        logit_soft_cap=text.get("final_logit_softcapping", 30.0),
        max_positions=text.get("max_position_embeddings"),
        eos_ids=eos or eos_ids(text),
        activation=activation(text, "hidden_activation", "gelu_pytorch_tanh"),
    )


FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, names.llama),
    "mistral": Family(_mistral, names.llama),
    "qwen2": Family(_qwen2, names.llama),
    "qwen3": Family(_qwen3, names.llama),
    "qwen3_moe": Family(_qwen3_moe, names.llama),
    "gpt2": Family(_gpt2, names.gpt2),
    "gemma2": Family(_gemma2, names.llama),
    "gemma3_text": Family(_gemma3, names.llama),
    "llada": Family(_llada, names.llada),
    "lladamoe": Family(_llada_moe, names.llama),
    "llada_moe": Family(_llada_moe, names.llama),
    "dream": Family(_dream, names.llama),
    "sdar": Family(_sdar, names.llama),
    "sdar_moe": Family(_sdar, names.llama),
    "diffusion_gemma": Family(
        _diffusion_gemma,
        names.diffusion_gemma,
        diffusion_gemma,
        ignored=(
            "model.encoder.vision_tower.",
            "model.encoder.embed_vision.",
            "lm_head.",
        ),
        alias=("model.decoder.", "model.encoder.language_model."),
    ),
}


def of(raw: dict) -> Family:
    """The family of a config.json; an unknown architecture names the known ones."""
    kind = str(raw.get("model_type", "")).lower()
    if kind == "llada" and "num_experts" in raw:
        kind = "lladamoe"  # published under the dense model's type
    family = FAMILIES.get(kind)
    if family is None:
        raise ValueError(
            f"unknown architecture {raw.get('model_type')!r}; known: "
            f"{', '.join(FAMILIES)}"
        )
    return family
