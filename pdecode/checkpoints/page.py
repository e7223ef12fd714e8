"""Writes docs/architectures.md: what each architecture reads and what it refuses.

    python -m pdecode.checkpoints.page docs/architectures.md

A cell is the answer to one small config.json: the field changed what was read ("read"),
changed nothing, as in the class it is for ("no effect"), or was refused by name.
"""

import copy
import dataclasses
import sys
from typing import Any

from pdecode import files
from pdecode.checkpoints import architectures
from pdecode.models import dit

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "mask_token_id": 63,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OWN: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_SIZES, **_MOE},
    "sdar_moe": {**_SIZES, **_MOE},
    "lladamoe": {**_SIZES, **_MOE, "expert_intermediate_size": 16},
    "llada2_moe": {
        **_SIZES, **_MOE, "num_shared_experts": 1, "n_group": 2, "topk_group": 2,
        "head_dim": 8,
    },
    "mdlm": {"vocab_size": 64, "hidden_dim": 32, "n_blocks": 2, "n_heads": 4},
    "bd3lm": {
        "vocab_size": 64, "hidden_dim": 32, "n_blocks": 2, "n_heads": 4,
        "block_size": 4,
    },
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "llada": {
        "vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4,
        "mask_token_id": 63,
    },
    "diffusion_gemma": {
        "canvas_length": 8,
        "text_config": {
            **_SIZES, **_MOE, "head_dim": 8, "sliding_window": 8, "top_k_experts": 2,
        },
    },
}  # fmt: skip
_TWICE = {"llada_moe": "lladamoe"}  # one reader under two names

_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LAYERS = ["full_attention", "sliding_attention"]
# What is asked: a name, and the fields that say it.
FEATURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rope_theta", {"rope_theta": 5e5}),
    *(
        (f"rope_scaling {kind}", {"rope_scaling": {"rope_type": kind, **more}})
        for kind, more in (
            ("linear", {"factor": 4.0}),
            ("dynamic", {"factor": 4.0}),
            ("llama3", _LLAMA3),
            ("yarn", {"factor": 4.0}),
            ("longrope", {"factor": 4.0}),
        )
    ),
    ("rope_parameters", {"rope_parameters": {"rope_type": "default",
                                             "rope_theta": 5e5}}),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    ("sliding_window", {"sliding_window": 5, "use_sliding_window": True,
                        "max_window_layers": 1}),
    ("layer_types", {"layer_types": _LAYERS, "sliding_window": 5,
                     "use_sliding_window": True, "max_window_layers": 2}),
    ("head_dim", {"head_dim": 16}),
    ("attention_bias", {"attention_bias": True}),
    ("mlp_bias", {"mlp_bias": True}),
    ("hidden_act", {"hidden_act": "gelu"}),
    ("tie_word_embeddings true", {"tie_word_embeddings": True}),
    ("tie_word_embeddings false", {"tie_word_embeddings": False}),
    ("final_logit_softcapping", {"final_logit_softcapping": 9.0}),
    ("attn_logit_softcapping", {"attn_logit_softcapping": 9.0}),
    ("query_pre_attn_scalar", {"query_pre_attn_scalar": 9}),
    ("is_causal false", {"is_causal": False}),
    ("per_layer_config", {"per_layer_config": {"0": {"head_dim": 4}}}),
)  # fmt: skip
_HEAD = """# Architectures

Written by `python -m pdecode.checkpoints.page docs/architectures.md` from the code that
reads a `config.json`; a test keeps it.

A field that is absent means the default of the class that `model_type` names; null
means what that class takes None for, and is refused by name elsewhere. Of two spellings
(`rope_scaling` and `rope_parameters`, `n_embd` and `hidden_size`) the one that the
class takes counts. Quantised folders, pickled weights and rotary types that are not
below are refused. A head that is called tied, and is stored as another matrix than the
embedding, is used, except by LLaDA and DiffusionGemma, whose code has no place for one.
"""
_CELLS = """What one more field does: "read" changes the network, "no effect" is a field
that the class has no use for either, or one that changes nothing here (`dynamic` scales
beyond `max_position_embeddings`, where no decode goes), "refused" is an error."""


def page() -> str:
    """The whole page."""
    kinds = [kind for kind in architectures.FAMILIES if kind not in _TWICE]
    facts = [("model_type", "sees", "predicts", "positions", "experts", "head")]
    facts += [_facts(kind) for kind in kinds]
    cells: list[tuple[str, ...]] = [("field", *kinds)]
    cells += [(name, *(_cell(kind, more) for kind in kinds)) for name, more in FEATURES]
    return "\n".join(
        [_HEAD, *_rows(facts), "", "## Fields", "", _CELLS, "", *_rows(cells), ""]
    )


def _read(kind: str, changes: dict[str, Any]) -> Any:
    raw: dict[str, Any] = {"model_type": kind, **_OWN.get(kind, _SIZES)}
    raw = copy.deepcopy(raw)
    # Where a configuration has its text's part in an object, the fields stand there.
    raw.get("text_config", raw).update(copy.deepcopy(changes))
    return architectures.of(raw).config(architectures.Fields(raw))


def _cell(kind: str, changes: dict[str, Any]) -> str:
    without = {}
    if "layer_types" in changes:  # asked for by itself
        without = {k: v for k, v in changes.items() if k != "layer_types"}
    try:
        config = _read(kind, changes)
    except ValueError:
        return "refused"
    return "no effect" if config == _read(kind, without) else "read"


def _facts(kind: str) -> tuple[str, ...]:
    config = _read(kind, {})
    facts = dataclasses.asdict(config)
    sees = getattr(config, "attention", "causal, then a canvas")
    # Networks of one kind of their own have no such field.
    own = "masked" if isinstance(config, dit.Config) else "uniform"
    predicts = facts.get("predicts", own)
    positions = "rotary" if facts.get("rope", True) else "learned"
    experts = "yes" if facts.get("experts") else "no"
    tied = "tied" if facts.get("tied", True) else "its own"
    name = kind if kind not in _TWICE.values() else f"{kind}, llada_moe"
    return (name, sees, predicts, positions, experts, f"{tied} by default")


def _rows(rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


if __name__ == "__main__":
    with files.replacing(sys.argv[1]) as file:
        file.write(page().encode())
