"""Checkpoint families: what a config.json means, and which tensor is which parameter.

A family is two pure functions: `config(fields)` reads the published configuration into
ours, and `names(config)` maps each parameter path to the tensors it is made of. Adding
a family is adding both and a line to FAMILIES.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from pdecode.checkpoints import causal, names
from pdecode.checkpoints.fields import Fields, activation, eos_ids, rope, sliding
from pdecode.models import diffusion_gemma, dit, transformer
from pdecode.models.config import Config, Experts, Rope


class Family(NamedTuple):
    """How a published architecture is read. `module` has its `init`, `make_model`."""

    config: Callable[[Fields], Any]
    names: Callable[[Any], dict[str, names.Source]]
    module: ModuleType = transformer
    ignored: tuple[str, ...] = ()  # prefixes of tensors that text has no use for
    alias: tuple[str, str] | None = None  # a prefix, and one that may stand for it
    is_head_kept: bool = True  # a head that is stored counts, though called tied


def _absorbing(fields: Fields, mask_id: int | None = None, **facts) -> dict[str, Any]:
    """`mask_id` is the default of the class, if that is an id of the vocabulary."""
    if mask_id is None or mask_id >= fields.need("vocab_size"):
        found = fields.need("mask_token_id")
    else:
        found = fields.get("mask_token_id", mask_id)
    return dict(predicts="masked", mask_id=found, **facts)


def _dream(fields: Fields) -> Config:
    """Dream: a Qwen2 that sees both ways and kept the autoregressive shift."""
    facts = _absorbing(fields, attention="bidirectional", shift=True)
    return causal.qwen(fields, name="dream", norm=False, bias=True, **facts)


def _sdar(fields: Fields) -> Config:
    """SDAR (Cheng et al., 2025, arXiv:2510.06303): a Qwen3, causal between blocks."""
    block_len = fields.get("block_size", fields.get("block_length", 4))
    facts = _absorbing(fields, attention="block_causal", block_len=block_len)
    if fields.get("num_experts") or fields.get("num_local_experts"):
        return causal.qwen3_moe(fields, "sdar_moe", **facts)
    return causal.qwen3(fields, "sdar", **facts)


def _fast_dllm(fields: Fields) -> Config:
    """Fast-dLLM v2 (Wu et al., 2025, arXiv:2509.26328): a shifted Qwen2, in blocks."""
    facts = _absorbing(
        fields,
        151_665,
        attention="block_causal",
        block_len=fields.size("bd_size", 32),
        shift=True,
    )
    return causal.qwen(fields, name="fast_dllm", norm=False, bias=True, **facts)


def _llada2(fields: Fields) -> Config:
    """LLaDA 2.0 and 2.1 (Bie et al., 2025, arXiv:2512.15745; 2026, arXiv:2602.08676).

    The block is no field of theirs, but the default of their `generate`.
    """
    fields.off("norm_head", "norm_softmax", "use_sliding_window")
    for name in ("norm_topk_prob", "moe_router_enable_expert_bias"):
        fields.expect(name, True)
    fields.expect("score_function", "sigmoid")
    fields.expect("router_dtype", "fp32", "float32")
    fields.expect("num_nextn_predict_layers", 0)
    for name in ("sliding_window", "max_window_layers"):
        fields.has(name)
    common = causal.sizes(fields, mlp=None, max_positions=16_384, is_causal=False)
    width, top_k = (
        fields.need("moe_intermediate_size"),
        fields.need("num_experts_per_tok"),
    )
    shared = width * (fields.get("num_shared_experts", 0, null=0))
    fields.expect("moe_shared_expert_intermediate_size", shared)
    num_dense = fields.get("first_k_dense_replace", 0)
    if num_dense and common["mlp_width"] is None:
        raise ValueError(
            "config.json has first_k_dense_replace, but no intermediate_size"
        )
    common["norm_eps"] = fields.get("rms_norm_eps", 1e-5)
    eos = 156_892 if common["vocab_size"] > 156_892 else None
    common["eos_ids"] = eos_ids(fields, eos)
    block_len = fields.size("block_size", None) or fields.size("block_length", 32)
    return Config(
        **common,
        rope=_partly(fields, common),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=fields.get("use_qkv_bias", False),
        out_bias=fields.get("use_bias", True),
        qk_norm=fields.get("use_qk_norm", True),
        experts=Experts(
            num_experts=fields.need("num_experts"),
            top_k=top_k,
            width=width,
            normalized=top_k > 1,
            scores="sigmoid",
            biased=True,
            num_groups=fields.size("n_group", 8),
            top_groups=fields.size("topk_group", 4),
            scale=float(fields.get("routed_scaling_factor", 2.5)),
            shared_width=shared,
        ),
        dense_layers=num_dense,
        name="llada2",
        **_absorbing(fields, 156_895, attention="block_causal", block_len=block_len),
    )


def _partly(fields: Fields, common: dict[str, Any]) -> Rope:
    """Rotary settings of the first dimensions of every head."""
    factor = fields.get("partial_rotary_factor", 0.5)
    size = common["head_dim"] or common["width"] // common["num_heads"]
    dims = int(size * factor)
    fields.expect("rotary_dim", dims)
    if not 0 < dims <= size or dims % 2:
        raise ValueError(
            f"config.json has partial_rotary_factor={factor}, of a head_dim of {size}: "
            "an even number of dimensions must turn"
        )
    return rope(fields, common["max_positions"], dims)


def _dit(fields: Fields, name: str, block_len: int | None) -> dit.Config:
    fields.off("time_conditioning")
    length = fields.size("model_length", 1024)
    width, heads = fields.size("hidden_dim", 768), fields.size("n_heads", 12)
    words = fields.size("vocab_size", 50_258)
    return dit.Config(
        vocab_size=words,
        width=width,
        num_layers=fields.size("n_blocks", 12),
        num_heads=heads,
        cond_width=fields.size("cond_dim", 129),
        block_len=block_len,
        max_positions=length,
        mask_id=fields.get("mask_token_id", words - 1),
        eos_ids=eos_ids(fields),
        name=name,
    )


def _mdlm(fields: Fields) -> dit.Config:
    """MDLM (Sahoo et al., 2024, arXiv:2406.07524), as published: no noise level."""
    return _dit(fields, "mdlm", None)


def _bd3lm(fields: Fields) -> dit.Config:
    """BD3-LM (Arriola et al., 2025, arXiv:2503.09573), as published likewise."""
    fields.off("causal")
    size = fields.size("block_size", 1)
    is_in_blocks = fields.get("cross_attn", True)
    config = _dit(fields, "bd3lm", size if is_in_blocks else None)
    if not fields.get("adaln", True):
        config = dataclasses.replace(config, cond_width=None)
    return config


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
    for name in ("clip_qkv", "rope_parameters", "rope_scaling", "sliding_window"):
        fields.expect(name, {})
    heads = fields.need("n_heads")
    words = fields.need("vocab_size")
    is_shared = fields.get("multi_query_attention", False, null=False)
    width = fields.need("d_model")
    ratio = fields.get("mlp_ratio", 4.0)
    return Config(
        # The embedding may have more rows than the vocabulary has words.
        vocab_size=fields.size("embedding_size") or words,
        width=width,
        num_layers=fields.need("n_layers"),
        num_heads=heads,
        num_kv_heads=fields.size("n_kv_heads") or (1 if is_shared else heads),
        mlp_width=fields.size("mlp_hidden_size") or int(ratio * width),
        rope=Rope(theta=float(fields.get("rope_theta", 10_000.0))),
        activation=activation(fields, "activation_type", "silu"),
        qkv_bias=fields.get("include_qkv_bias", False, null=False),
        max_positions=fields.size("max_sequence_length"),
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
    frequency = fields.get("moe_layer_freq")
    frequency = 1 if frequency is None else frequency
    if set(frequency if isinstance(frequency, list) else [frequency]) != {1}:
        raise ValueError(f"config.json has moe_layer_freq={frequency}: only all ones")
    fields.get("dense_intermediate_size")
    bias = fields.get("attention_bias", False)
    common = causal.sizes(fields, mlp=None, max_positions=None, is_causal=False)
    common["norm_eps"] = fields.get("rms_norm_eps", 1e-5)
    return Config(
        **common,
        rope=rope(fields, common["max_positions"]),
        activation=activation(fields, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=fields.get("qk_layernorm", True),
        experts=causal.experts(fields, "expert_intermediate_size"),
        name="llada_moe",
        **_absorbing(fields, attention="bidirectional"),
    )


def _diffusion_gemma(fields: Fields) -> diffusion_gemma.Config:
    canvas_len = fields.need("canvas_length")
    fields.expect("tie_word_embeddings", True)
    eos = eos_ids(fields)
    text = Fields(fields.need("text_config"))
    text.expect("attention_bias", False)
    text.expect("tie_word_embeddings", True)
    text.expect("use_bidirectional_attention", "vision", False)
    num_layers = text.need("num_hidden_layers")
    every = (*((i + 1) % 6 != 0 for i in range(num_layers - 1)), False)
    slides = sliding(text, num_layers, every)
    if slides[-1]:
        raise ValueError("config.json's layer_types must end with full_attention")
    heads, head_dim = text.need("num_key_value_heads"), text.need("head_dim")
    full_heads, full_dim = _full_layers(text, slides, heads, head_dim)
    local, full = _turning(text)
    return diffusion_gemma.Config(
        vocab_size=text.need("vocab_size"),
        width=text.need("hidden_size"),
        num_heads=text.need("num_attention_heads"),
        num_kv_heads=heads,
        head_dim=head_dim,
        full_num_kv_heads=full_heads,
        full_head_dim=full_dim,
        mlp_width=text.need("intermediate_size"),
        experts=Experts(
            text.need("num_experts"),
            text.need("top_k_experts"),
            text.need("moe_intermediate_size"),
        ),
        sliding=slides,
        window=text.need("sliding_window"),
        canvas_len=canvas_len,
        rope_sliding=local,
        rope_full=full,
        norm_eps=text.get("rms_norm_eps", 1e-6),
        logit_soft_cap=text.get("final_logit_softcapping", 30.0),
        max_positions=text.get("max_position_embeddings"),
        eos_ids=eos or eos_ids(text),
        activation=activation(text, "hidden_activation", "gelu_pytorch_tanh"),
    )


def _full_layers(text: Fields, slides, heads: int, head_dim: int) -> tuple[int, int]:
    """Key heads and head size of full layers: by layer, or as global sizes."""
    by_layer = text.get("per_layer_config")
    if by_layer is None:
        found = text.size("num_global_key_value_heads") or heads
        return found, text.size("global_head_dim", 512)
    places = [str(i) for i, is_sliding in enumerate(slides) if not is_sliding]
    own = by_layer.get(places[0], {})
    known = {"num_key_value_heads", "head_dim"}
    is_even = all(by_layer.get(place, {}) == own for place in places)
    if set(by_layer) - set(places) or set(own) - known or not is_even:
        text.refuse("per_layer_config", "which differs by more than full_attention")
    return own.get("num_key_value_heads", heads), own.get("head_dim", head_dim)


def _turning(text: Fields) -> tuple[Rope, Rope]:
    """Rotary settings of sliding layers, then of full ones."""
    given = text.get("rope_parameters")
    if given is None:
        return Rope(theta=10_000.0), Rope(theta=1_000_000.0, fraction=0.25)
    found = []
    for kind, rope_type in (
        ("sliding_attention", "default"),
        ("full_attention", "proportional"),
    ):
        own = given.get(kind) or {}
        unknown = set(own) - {"rope_type", "rope_theta", "partial_rotary_factor"}
        if own.get("rope_type") != rope_type or "rope_theta" not in own or unknown:
            text.refuse("rope_parameters", f"whose {kind} must be of {rope_type!r}")
        fraction = own.get("partial_rotary_factor", 1.0) if len(found) else 1.0
        found.append(Rope(theta=float(own["rope_theta"]), fraction=float(fraction)))
    return found[0], found[1]


FAMILIES: dict[str, Family] = {
    "llama": Family(causal.llama, names.llama),
    "mistral": Family(causal.mistral, names.llama),
    "qwen2": Family(causal.qwen2, names.llama),
    "qwen3": Family(causal.qwen3, names.llama),
    "qwen3_moe": Family(causal.qwen3_moe, names.llama),
    "gpt2": Family(causal.gpt2, names.gpt2),
    "gemma2": Family(causal.gemma2, names.llama),
    "gemma3_text": Family(causal.gemma3, names.llama),
    "llada": Family(_llada, names.llada, is_head_kept=False),
    "lladamoe": Family(_llada_moe, names.llama),
    "llada_moe": Family(_llada_moe, names.llama),
    "llada2_moe": Family(_llada2, names.llada2),
    "dream": Family(_dream, names.llama),
    "fast_dllm_qwen": Family(_fast_dllm, names.llama),
    "mdlm": Family(_mdlm, names.dit, dit, is_head_kept=False),
    "bd3lm": Family(
        _bd3lm, names.dit, dit, ignored=("sampling_eps_",), is_head_kept=False
    ),
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
        is_head_kept=False,
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
