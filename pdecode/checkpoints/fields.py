"""Reading a published config.json: values, refusals, and what nobody understood."""

import warnings
from typing import Any

from pdecode.models.config import Rope


class Fields:
    """A config.json as it is being read; knows what nobody asked for."""

    def __init__(self, raw: dict):
        if not isinstance(raw, dict):
            raise ValueError(f"config.json has {raw!r} where an object belongs")
        self.raw = raw
        self.seen: set[str] = set(_HARMLESS)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        value = self.raw.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ValueError(f"config.json lacks {name}")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Raise unless the field is absent, null, or one of `allowed`."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise ValueError(
                f"config.json has {name}={value!r}, which is not supported; "
                f"supported: {', '.join(map(repr, allowed))}"
            )

    def warn_unread(self) -> None:
        unread = sorted(
            name
            for name, value in self.raw.items()
            if name not in self.seen and value not in (None, False, 0, "", [], {})
        )
        if unread:
            warnings.warn(
                f"config.json fields that were not understood and are ignored: "
                f"{', '.join(unread)}",
                stacklevel=3,
            )


# Fields that say nothing about what the network computes.
_HARMLESS = frozenset(
    """architectures auto_map transformers_version torch_dtype dtype use_cache
    initializer_range attention_dropout bos_token_id pad_token_id model_type
    name_or_path _name_or_path hidden_dropout embd_pdrop attn_pdrop resid_pdrop
    summary_type summary_use_proj summary_activation summary_first_dropout
    summary_proj_to_labels pretraining_tp _attn_implementation attn_implementation
    is_encoder_decoder task_specific_params output_router_logits
    router_aux_loss_coef cache_implementation layer_types tokenizer_class n_ctx
    embedding_dropout residual_dropout flash_attention flash_attn_varlen init_device
    init_fn init_std init_cutoff_factor precision sep_token_id alibi_bias_max
    attention_layer_norm_with_affine rope_full_precision max_window_layers
    return_dict output_hidden_states output_attentions id2label label2id
    problem_type chunk_size_feed_forward add_cross_attention debug ep_size
    fuse_cross_entropy micro_forward skip_checkpoint use_deepep text_config
    mlp_ratio boi_token_id eoi_token_id image_token_id vision_config""".split()
)

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(fields: Fields, name: str, default: str) -> str:
    value = fields.get(name, default)
    if value not in _ACTIVATIONS:
        raise ValueError(
            f"config.json has {name}={value!r}, which is not supported; supported: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[value]


def rope(fields: Fields, layer_type: str | None = None) -> Rope:
    """Rotary settings from `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    theta = fields.get("rope_theta", 10_000.0)
    scaling = fields.get("rope_scaling") or {}
    both = fields.get("rope_parameters") or {}
    for given in (scaling, both):
        if not isinstance(given, dict):
            raise ValueError(
                f"config.json has rotary settings {given!r}, which are no object"
            )
    if both:
        scaling = both.get(layer_type, both) if layer_type else both
        theta = scaling.get("rope_theta", theta)
    kind = scaling.get("rope_type", scaling.get("type", "default"))

    def need(name: str) -> float:
        if scaling.get(name) is None:
            raise ValueError(
                f"config.json has rope type {kind!r}, but lacks its {name}"
            )
        return float(scaling[name])

    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            "config.json has a partial_rotary_factor, which is not supported here"
        )
    if kind == "default":
        return Rope(theta=float(theta))
    if kind == "linear":
        return Rope(theta=float(theta), scaling=kind, factor=need("factor"))
    if kind == "llama3":
        return Rope(
            theta=float(theta),
            scaling=kind,
            factor=need("factor"),
            low_freq_factor=need("low_freq_factor"),
            high_freq_factor=need("high_freq_factor"),
            original_max_positions=int(need("original_max_position_embeddings")),
        )
    raise ValueError(
        f"config.json has rope type {kind!r}, which is not supported; supported: "
        "default, linear, llama3"
    )


def eos_ids(fields: Fields) -> tuple[int, ...]:
    value = fields.get("eos_token_id", ())
    ids = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(each, int) for each in ids):
        raise ValueError(f"config.json has eos_token_id={value!r}, which is no id")
    return ids


def sliding(fields: Fields) -> tuple[bool, ...]:
    """Which layers slide, by `layer_types`; empty if the configuration has none."""
    kinds = fields.get("layer_types") or ()
    known = ("full_attention", "sliding_attention")
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise ValueError(
            f"config.json has layer_types {', '.join(unknown)}, which are not "
            f"supported; supported: {', '.join(known)}"
        )
    return tuple(kind == "sliding_attention" for kind in kinds)
