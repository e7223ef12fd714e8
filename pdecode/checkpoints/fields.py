"""Reading a published config.json: values, refusals, and what nobody understood.

A field that is absent means what the default of its class means; null means nothing
but what the class takes None for, and is refused by name elsewhere.
"""

import dataclasses
import warnings
from typing import Any, NoReturn

from pdecode.models.config import Rope

REFUSED = object()
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
}


class Fields:
    """A config.json as it is being read; knows what nobody asked for."""

    def __init__(self, raw: dict):
        if not isinstance(raw, dict):
            raise ValueError(f"config.json has {raw!r} where an object belongs")
        self.raw = raw
        self.seen: set[str] = set(HARMLESS)

    def has(self, name: str) -> bool:
        """Whether the field is there, null or not."""
        self.seen.add(name)
        return name in self.raw

    def get(self, name: str, default: Any = None, *, null: Any = REFUSED) -> Any:
        """The field; `default` where it is absent and `null` where it is null.

        Raises ValueError for a value of another kind than the default's, and for null
        where `null` is not given, unless the default is None too.
        """
        if not self.has(name):
            return default
        value = self.raw[name]
        if value is None:
            if null is REFUSED and default is not None:
                self.refuse(name, f"leave it out for {default!r}")
            return None if null is REFUSED else null
        allowed, what = _KINDS.get(type(default), ((object,), ""))
        is_flag = isinstance(value, bool) and allowed != (bool,)
        if default is not None and (is_flag or not isinstance(value, allowed)):
            self.refuse(name, f"it must be {what}")
        return value

    def size(
        self, name: str, default: int | None = None, *, null: Any = REFUSED
    ) -> Any:
        """A whole number of at least 1, or None; else as `get`."""
        value = self.get(name, default, null=null)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            self.refuse(name, "it must be a whole number of at least 1")
        return value

    def name(self, older: str, newer: str) -> str:
        """Of two spellings of a field the newer one, if it is there: it counts."""
        self.seen.add(older)
        return newer if self.has(newer) else older

    def need(self, name: str) -> Any:
        """A field that must be there."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"config.json lacks {name}")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Raise unless the field is absent, null, or one of `allowed`."""
        value = self.get(name)
        if value is not None and value not in allowed:
            supported = ", ".join(map(repr, allowed)) or "none"
            self.refuse(name, f"which is not supported; supported: {supported}")

    def off(self, *names: str) -> None:
        """Raise unless each field is absent or false."""
        for name in names:
            if self.get(name, False):
                self.refuse(name, "which is not supported; supported: False")

    def refuse(self, name: str, why: str) -> NoReturn:
        value = "null" if self.raw[name] is None else repr(self.raw[name])
        raise ValueError(f"config.json has {name}={value}, {why}")

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
HARMLESS = frozenset(
    """architectures auto_map transformers_version torch_dtype dtype use_cache
    initializer_range attention_dropout bos_token_id pad_token_id model_type
    name_or_path _name_or_path hidden_dropout embd_pdrop attn_pdrop resid_pdrop
    summary_type summary_use_proj summary_activation summary_first_dropout
    summary_proj_to_labels pretraining_tp _attn_implementation attn_implementation
    is_encoder_decoder task_specific_params output_router_logits
    router_aux_loss_coef cache_implementation layer_types tokenizer_class n_ctx
    embedding_dropout residual_dropout flash_attention flash_attn_varlen init_device
    init_fn init_std init_cutoff_factor precision sep_token_id alibi_bias_max
    attention_layer_norm_with_affine rope_full_precision
    return_dict output_hidden_states output_attentions id2label label2id
    problem_type chunk_size_feed_forward debug ep_size
    fuse_cross_entropy micro_forward skip_checkpoint use_deepep text_config
    output_dropout conplemenrary_mask attn_backend dropout var_min sampling_eps_min
    sampling_eps_max mlp_ratio boi_token_id eoi_token_id image_token_id
    vision_config""".split()
)

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ROPES = ("default", "linear", "dynamic", "llama3")


def activation(fields: Fields, name: str, default: str) -> str:
    value = fields.get(name, default)
    if value not in _ACTIVATIONS:
        raise ValueError(
            f"config.json has {name}={value!r}, which is not supported; supported: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[value]


def rope(fields: Fields, max_positions: int | None, dims: int | None = None) -> Rope:
    """Rotary settings that all layers share; `dims` as in `Rope`.

    The newer spelling is `rope_parameters`, the older `rope_theta` and `rope_scaling`;
    of both, `rope_scaling` counts, and `rope_theta` fills in what it does not say.
    """
    newer, older = _object(fields, "rope_parameters"), _object(fields, "rope_scaling")
    name, settings = ("rope_scaling", older) if older else ("rope_parameters", newer)
    if any(isinstance(value, dict) for value in settings.values()):
        fields.refuse(name, "but every layer of this architecture turns alike")
    if dims is None:
        fields.expect("partial_rotary_factor", 1.0)
    if "rope_theta" not in settings:
        settings = {**settings, "rope_theta": fields.get("rope_theta", 10_000.0)}
    fields.has("rope_theta")
    original = fields.size("original_max_position_embeddings")
    found = _rope(name, settings, max_positions, original)
    return dataclasses.replace(found, dims=dims)


def rope_by_layer(fields: Fields, max_positions: int | None) -> tuple[Rope, Rope]:
    """Rotary settings of full layers, then of sliding ones: Gemma 3."""
    newer, older = _object(fields, "rope_parameters"), _object(fields, "rope_scaling")
    kinds = ("full_attention", "sliding_attention")
    if set(newer) - set(kinds):
        fields.refuse("rope_parameters", f"it must be by layer type: {kinds}")
    if older and "rope_type" not in older:
        fields.refuse("rope_scaling", "name its rope_type")
    fields.expect("partial_rotary_factor", 1.0)
    found = []
    for kind, theta_name, theta in (
        (kinds[0], "rope_theta", 1_000_000.0),
        (kinds[1], "rope_local_base_freq", 10_000.0),
    ):
        settings = newer.get(kind) or {}
        if not isinstance(settings, dict):
            fields.refuse("rope_parameters", f"its {kind} is no object")
        name = "rope_parameters"
        if kind == "full_attention" and older:
            name, settings = "rope_scaling", {**settings, **older}
        fields.has(theta_name)
        if "rope_theta" not in settings:
            settings = {**settings, "rope_theta": fields.get(theta_name, theta)}
        found.append(_rope(name, settings, max_positions))
    return found[0], found[1]


def _rope(
    name: str, settings: dict, max_positions: int | None, original: int | None = None
) -> Rope:
    """One set of settings; `original` counts before what they say themselves."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ROPES:
        raise ValueError(
            f"config.json has {name} of rope type {kind!r}, which is not supported; "
            f"supported: {', '.join(ROPES)}"
        )

    def need(key: str, default: Any = None) -> float:
        value = settings.get(key, default)
        if value is None:
            raise ValueError(
                f"config.json has {name} of rope type {kind!r}, but lacks its {key}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(
                f"config.json has {name} with {key}={value!r}, "
                "which is no number above 0"
            )
        return float(value)

    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"config.json has {name} with a partial_rotary_factor, which is not "
            "supported here"
        )
    theta = need("rope_theta")
    if kind == "default":
        return Rope(theta=theta)
    factor = need("factor")
    if kind == "dynamic":
        # It changes nothing up to max_positions, and no decode goes further.
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, scaling=kind, factor=factor)
    length = original or need("original_max_position_embeddings", max_positions)
    return Rope(
        theta=theta,
        scaling=kind,
        factor=factor,
        low_freq_factor=need("low_freq_factor"),
        high_freq_factor=need("high_freq_factor"),
        original_max_positions=int(length),
    )


def _object(fields: Fields, name: str) -> dict:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"config.json has {name}: rotary settings {value!r}, which are no object"
        )
    return value or {}


def eos_ids(fields: Fields, default: int | None = None) -> tuple[int, ...]:
    """Ids that end a text; absent means `default`, null means none."""
    value = fields.raw.get("eos_token_id", default)
    fields.seen.add("eos_token_id")
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise ValueError(f"config.json has eos_token_id={value!r}, which is no id")
    return ids


def sliding(
    fields: Fields, num_layers: int, otherwise: tuple[bool, ...] = ()
) -> tuple[bool, ...]:
    """Which layers slide, by `layer_types`; `otherwise` if it is absent or null."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return otherwise
    if not isinstance(kinds, list):
        fields.refuse("layer_types", "it must be a list")
    known = ("full_attention", "sliding_attention")
    unknown = sorted({str(kind) for kind in kinds} - set(known))
    if unknown:
        raise ValueError(
            f"config.json has layer_types {', '.join(unknown)}, which are not "
            f"supported; supported: {', '.join(known)}"
        )
    if len(kinds) != num_layers:
        raise ValueError(
            f"config.json has layer_types of {len(kinds)} layers, but "
            f"num_hidden_layers={num_layers}"
        )
    return tuple(kind == "sliding_attention" for kind in kinds)
