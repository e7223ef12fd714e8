"""Which tensors of a published checkpoint each of our parameters is made of.

Paths are ours, "layer_0/attention/query/kernel"; in the tables below "layer/" and {}
stand for every layer. A table reads both ways, so it also writes checkpoints.
"""

from typing import Any, NamedTuple

from pdecode.models.config import Config


class Source(NamedTuple):
    """The tensors a parameter is made of.

    `how` "plain" takes one as it is; "linear" swaps its last two axes, [out, in] to
    [in, out]; "part" takes third `part` of the last axis; "half" takes half `part` of
    the rows of each [out, in] and swaps; "stack" swaps each and stacks them; "rows"
    takes those of one part, whose numbers are in `sizes`, and swaps a matrix.
    """

    names: tuple[str, ...]
    how: str = "plain"
    part: int = 0
    sizes: tuple[int, ...] = ()


def _layers(config: Any, table: dict[str, str]) -> dict[str, Source]:
    """`table` with {} filled in for every layer; kernels are transposed."""
    names = {}
    for path, name in table.items():
        how = "linear" if path.endswith("/kernel") else "plain"
        if path.startswith("layer/"):
            for layer in range(config.num_layers):
                full = path.replace("layer/", f"layer_{layer}/", 1)
                names[full] = Source((name.format(layer),), how)
        else:
            names[path] = Source((name,), how)
    return names


def _fused(
    config: Any, stem: str, sizes: tuple[int, ...], bias: bool
) -> dict[str, Source]:
    """Query, key and value of every layer out of one matrix, {stem}.weight."""
    names = {}
    for layer in range(config.num_layers):
        for part, ours in enumerate(("query", "key", "value")):
            path, theirs = f"layer_{layer}/attention/{ours}/", stem.format(layer)
            names[path + "kernel"] = Source((theirs + ".weight",), "rows", part, sizes)
            if bias:
                names[path + "bias"] = Source((theirs + ".bias",), "rows", part, sizes)
    return names


def llada2(config: Config) -> dict[str, Source]:
    block = "model.layers.{}."
    table = {
        "embed": "model.word_embeddings.weight",
        "norm/weight": "model.norm.weight",
        "layer/attention_norm/weight": block + "input_layernorm.weight",
        "layer/mlp_norm/weight": block + "post_attention_layernorm.weight",
        "layer/attention/out/kernel": block + "attention.dense.weight",
    }
    if not config.tied:
        table["head"] = "lm_head.weight"
    if config.out_bias:
        table["layer/attention/out/bias"] = block + "attention.dense.bias"
    if config.qk_norm:
        for ours, theirs in (("query", "query_layernorm"), ("key", "key_layernorm")):
            path = f"layer/attention/{ours}_norm/weight"
            table[path] = f"{block}attention.{theirs}.weight"
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    sizes = tuple(count * config.head_dim for count in heads)
    stem = block + "attention.query_key_value"
    names = _layers(config, table) | _fused(config, stem, sizes, config.qkv_bias)
    for layer in range(config.num_layers):
        ours, theirs = f"layer_{layer}/mlp/", block.format(layer) + "mlp."
        if config.experts is None or layer < config.dense_layers:
            for name in ("gate", "up", "down"):
                source = Source((f"{theirs}{name}_proj.weight",), "linear")
                names[f"{ours}{name}/kernel"] = source
            continue
        names[ours + "router/kernel"] = Source((theirs + "gate.weight",), "linear")
        names[ours + "router_bias"] = Source((theirs + "gate.expert_bias",))
        for name in ("gate", "up", "down"):
            each = range(config.experts.num_experts)
            listed = (f"{theirs}experts.{n}.{name}_proj.weight" for n in each)
            names[ours + name] = Source(tuple(listed), "stack")
            if config.experts.shared_width:
                shared = f"{theirs}shared_experts.{name}_proj.weight"
                names[f"{ours}shared/{name}/kernel"] = Source((shared,), "linear")
    return names


def dit(config: Any) -> dict[str, Source]:
    block, last = "backbone.blocks.{}.", "backbone.output_layer."
    table = {
        "embed": "backbone.vocab_embed.embedding",
        "head": last + "linear.weight",
        "head_bias": last + "linear.bias",
        "last/norm/weight": last + "norm_final.weight",
        "layer/attention_norm/weight": block + "norm1.weight",
        "layer/attention/out/kernel": block + "attn_out.weight",
        "layer/mlp_norm/weight": block + "norm2.weight",
        "layer/mlp/up/kernel": block + "mlp.0.weight",
        "layer/mlp/up/bias": block + "mlp.0.bias",
        "layer/mlp/down/kernel": block + "mlp.2.weight",
        "layer/mlp/down/bias": block + "mlp.2.bias",
    }
    if config.cond_width is not None:
        for ours, theirs in (
            ("noise_level/opening", "backbone.sigma_map.mlp.0"),
            ("noise_level/end", "backbone.sigma_map.mlp.2"),
            ("last/modulation", last + "adaLN_modulation"),
            ("layer/modulation", block + "adaLN_modulation"),
        ):
            table |= {
                f"{ours}/kernel": theirs + ".weight",
                f"{ours}/bias": theirs + ".bias",
            }
    names = _layers(config, table)
    return names | _fused(config, block + "attn_qkv", (config.width,) * 3, False)


def llama(config: Config, prefix: str = "model.") -> dict[str, Source]:
    block = prefix + "layers.{}."
    table = {
        "embed": prefix + "embed_tokens.weight",
        "norm/weight": prefix + "norm.weight",
        "layer/attention_norm/weight": block + "input_layernorm.weight",
        "layer/mlp_norm/weight": block + "post_attention_layernorm.weight",
    }
    if config.post_norms:
        table |= {
            "layer/attention_post_norm/weight": block
            + "post_attention_layernorm.weight",
            "layer/mlp_norm/weight": block + "pre_feedforward_layernorm.weight",
            "layer/mlp_post_norm/weight": block + "post_feedforward_layernorm.weight",
        }
    if not config.tied:
        table["head"] = "lm_head.weight"
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        stem = f"{block}self_attn.{theirs}_proj."
        table[f"layer/attention/{ours}/kernel"] = stem + "weight"
        if config.out_bias if ours == "out" else config.qkv_bias:
            table[f"layer/attention/{ours}/bias"] = stem + "bias"
    if config.qk_norm:
        table["layer/attention/query_norm/weight"] = block + "self_attn.q_norm.weight"
        table["layer/attention/key_norm/weight"] = block + "self_attn.k_norm.weight"
    if config.experts is None:
        for name in ("gate", "up", "down"):
            table[f"layer/mlp/{name}/kernel"] = f"{block}mlp.{name}_proj.weight"
            if config.mlp_bias:
                table[f"layer/mlp/{name}/bias"] = f"{block}mlp.{name}_proj.bias"
        return _layers(config, table)
    table["layer/mlp/router/kernel"] = block + "mlp.gate.weight"
    names = _layers(config, table)
    for layer in range(config.num_layers):
        for name in ("gate", "up", "down"):
            stem = f"{block.format(layer)}mlp.experts."
            each = range(config.experts.num_experts)
            names[f"layer_{layer}/mlp/{name}"] = Source(
                tuple(f"{stem}{expert}.{name}_proj.weight" for expert in each), "stack"
            )
    return names


def llada(config: Config) -> dict[str, Source]:
    block = "model.transformer.blocks.{}."
    table = {
        "embed": "model.transformer.wte.weight",
        "norm/weight": "model.transformer.ln_f.weight",
        "layer/attention_norm/weight": block + "attn_norm.weight",
        "layer/mlp_norm/weight": block + "ff_norm.weight",
        "layer/attention/out/kernel": block + "attn_out.weight",
        "layer/mlp/gate/kernel": block + "ff_proj.weight",
        "layer/mlp/up/kernel": block + "up_proj.weight",
        "layer/mlp/down/kernel": block + "ff_out.weight",
    }
    if not config.tied:
        table["head"] = "model.transformer.ff_out.weight"
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        table[f"layer/attention/{ours}/kernel"] = f"{block}{theirs}_proj.weight"
        if config.qkv_bias:
            table[f"layer/attention/{ours}/bias"] = f"{block}{theirs}_proj.bias"
    return _layers(config, table)


def gpt2(config: Config) -> dict[str, Source]:
    names = {
        "embed": Source(("transformer.wte.weight",)),
        "positions": Source(("transformer.wpe.weight",)),
        "norm/weight": Source(("transformer.ln_f.weight",)),
        "norm/bias": Source(("transformer.ln_f.bias",)),
    }
    if not config.tied:
        names["head"] = Source(("lm_head.weight",))
    # Its linear layers are stored [in, out] already.
    for layer in range(config.num_layers):
        ours, theirs = f"layer_{layer}/", f"transformer.h.{layer}."
        for kind, suffix in (("weight", "weight"), ("bias", "bias")):
            leaf = "kernel" if kind == "weight" else "bias"
            names[f"{ours}attention_norm/{kind}"] = Source((f"{theirs}ln_1.{suffix}",))
            names[f"{ours}mlp_norm/{kind}"] = Source((f"{theirs}ln_2.{suffix}",))
            for part, name in enumerate(("query", "key", "value")):
                names[f"{ours}attention/{name}/{leaf}"] = Source(
                    (f"{theirs}attn.c_attn.{suffix}",), "part", part
                )
            for path, name in (
                ("attention/out", "attn.c_proj"),
                ("mlp/up", "mlp.c_fc"),
                ("mlp/down", "mlp.c_proj"),
            ):
                names[f"{ours}{path}/{leaf}"] = Source((f"{theirs}{name}.{suffix}",))
    return names


def diffusion_gemma(config: Any) -> dict[str, Source]:
    block = "model.decoder.layers.{}."
    table = {
        "embed": "model.decoder.embed_tokens.weight",
        "norm/weight": "model.decoder.norm.weight",
        "self_conditioning/pre_norm/weight": (
            "model.decoder.self_conditioning.pre_norm.weight"
        ),
        "layer/attention_norm/weight": block + "input_layernorm.weight",
        "layer/attention_post_norm/weight": block + "post_attention_layernorm.weight",
        "layer/mlp_norm/weight": block + "pre_feedforward_layernorm.weight",
        "layer/mlp_post_norm/weight": block + "post_feedforward_layernorm_1.weight",
        "layer/experts_norm/weight": block + "pre_feedforward_layernorm_2.weight",
        "layer/experts_post_norm/weight": block + "post_feedforward_layernorm_2.weight",
        "layer/mlp_joint_norm/weight": block + "post_feedforward_layernorm.weight",
        "layer/query/kernel": block + "self_attn.q_proj.weight",
        "layer/key/kernel": block + "self_attn.k_proj.weight",
        "layer/out/kernel": block + "self_attn.o_proj.weight",
        "layer/query_norm/weight": block + "self_attn.q_norm.weight",
        "layer/key_norm/weight": block + "self_attn.k_norm.weight",
        "layer/experts/router/kernel": block + "router.proj.weight",
        "layer/experts/router_scale": block + "router.scale",
        "layer/experts/expert_scale": block + "router.per_expert_scale",
        "layer/denoise_scale": block + "layer_scalar",
        "layer/encode_scale": "model.encoder.language_model.layers.{}.layer_scalar",
    }
    for name in ("gate", "up", "down"):
        table[f"layer/mlp/{name}/kernel"] = f"{block}mlp.{name}_proj.weight"
        table[f"self_conditioning/{name}/kernel"] = (
            f"model.decoder.self_conditioning.{name}_proj.weight"
        )
    names = _layers(config, table)
    for layer in range(config.num_layers):
        ours, theirs = f"layer_{layer}/experts/", f"{block.format(layer)}experts."
        both = (theirs + "gate_up_proj",)
        names[ours + "gate"] = Source(both, "half", 0)
        names[ours + "up"] = Source(both, "half", 1)
        names[ours + "down"] = Source((theirs + "down_proj",), "linear")
        if config.sliding[layer]:
            names[f"layer_{layer}/value/kernel"] = Source(
                (f"{block.format(layer)}self_attn.v_proj.weight",), "linear"
            )
    return names
