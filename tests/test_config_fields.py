"""What each field of a config.json means: as the class it was written by reads it.

The oracle is transformers' own class of each architecture: a field that is absent,
null, another value, or spelled in more than one way gives its logits, or is refused by
name. Those tests need the extra `oracle`; the others read configurations only.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from pdecode.checkpoints import fields, loading, page, tensors
from pdecode.kernels.head import dense as vocab_head
from pdecode.models import transformer

try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None

oracle = pytest.mark.oracle
needs_oracle = pytest.mark.skipif(torch is None, reason="needs the extra oracle")

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
GEMMA = dict(SIZES, head_dim=8, sliding_window=5, query_pre_attn_scalar=12)
BASES = {
    "llama": dict(SIZES, model_type="llama"),
    "mistral": dict(SIZES, model_type="mistral", sliding_window=5),
    "qwen2": dict(SIZES, model_type="qwen2"),
    "qwen3": dict(SIZES, model_type="qwen3", head_dim=12),
    "gemma2": dict(GEMMA, model_type="gemma2"),
    "gemma3": dict(
        GEMMA,
        model_type="gemma3_text",
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt2": dict(
        model_type="gpt2", vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
}
ABSENT = object()


def with_changes(name, changes):
    """The base configuration with fields set, or left out where ABSENT."""
    raw = {**BASES[name], **changes}
    return {key: value for key, value in raw.items() if value is not ABSENT}


def read(folder, raw):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loading.read_config(folder)[1]


# Fields of one word each: changes, and what must hold of what was read.
MEANINGS = [
    ("mistral", dict(sliding_window=ABSENT), dict(window=4096)),
    ("mistral", dict(sliding_window=None), dict(window=None)),
    (
        "mistral",
        dict(num_attention_heads=16, num_key_value_heads=ABSENT),
        dict(num_kv_heads=8),
    ),
    ("gemma2", dict(hidden_act="gelu"), dict(activation="gelu_tanh")),
    ("gemma3", dict(hidden_act="gelu"), dict(activation="gelu_tanh")),
    ("gemma2", dict(hidden_activation="gelu"), dict(activation="gelu")),
    ("gemma2", {}, dict(logit_soft_cap=30.0, attention_soft_cap=50.0)),
    ("gemma2", dict(final_logit_softcapping=None), dict(logit_soft_cap=None)),
    ("gemma3", {}, dict(logit_soft_cap=None, attention_soft_cap=None, tied=True)),
    ("gemma3", dict(head_dim=ABSENT), dict(head_dim=256)),
    ("qwen3", dict(head_dim=ABSENT), dict(head_dim=128)),
    ("qwen2", dict(use_sliding_window=True), dict(window=4096, sliding=(False,) * 2)),
    (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        dict(window=5, sliding=(False, True)),
    ),
    ("qwen3", dict(sliding_window=5), dict(window=None)),
    ("llama", {}, dict(eos_ids=(2,), tied=False, num_kv_heads=2)),
    ("llama", dict(num_key_value_heads=None), dict(num_kv_heads=4)),
    ("llama", dict(eos_token_id=None), dict(eos_ids=())),
    ("llama", dict(eos_token_id=[3, 4]), dict(eos_ids=(3, 4))),
    ("gpt2", {}, dict(eos_ids=(50256,), tied=True, activation="gelu_tanh")),
    ("gpt2", dict(n_inner=None), dict(mlp_width=128)),
    ("gpt2", dict(n_embd=ABSENT, hidden_size=16), dict(width=16)),
    ("gpt2", dict(hidden_size=16), dict(width=16)),
    ("gpt2", dict(scale_attn_weights=False), dict(query_scale=1.0)),
]


@pytest.mark.parametrize("name, changes, meant", MEANINGS)
def test_a_field_means_what_its_class_means(name, changes, meant, tmp_path):
    config = read(tmp_path, with_changes(name, changes))
    assert {key: getattr(config, key) for key in meant} == meant


LINEAR = {"rope_type": "linear", "factor": 8.0}
OLD_LINEAR = {"type": "linear", "factor": 8.0}
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPES = [
    ("llama", {}, (10_000.0, None, 1.0)),
    ("llama", dict(rope_theta=5e5), (5e5, None, 1.0)),
    ("llama", dict(rope_parameters={"rope_theta": 5e5}), (5e5, None, 1.0)),
    (
        "llama",
        dict(rope_theta=7e5, rope_parameters={"rope_theta": 5e5}),
        (5e5, None, 1.0),
    ),
    ("llama", dict(rope_scaling=OLD_LINEAR), (10_000.0, "linear", 8.0)),
    ("llama", dict(rope_scaling=LINEAR, rope_theta=5e5), (5e5, "linear", 8.0)),
    (
        "llama",
        dict(rope_scaling=LINEAR, rope_parameters={"rope_theta": 5e5}),
        (10_000.0, "linear", 8.0),
    ),
    ("gemma3", {}, (1e6, None, 1.0)),
    ("gemma3", dict(rope_scaling=LINEAR), (1e6, "linear", 8.0)),
    ("gemma3", dict(rope_scaling=LINEAR, rope_theta=5e5), (5e5, "linear", 8.0)),
    (
        "gemma3",
        dict(rope_parameters={"full_attention": LINEAR}, rope_theta=5e5),
        (5e5, "linear", 8.0),
    ),
]


@pytest.mark.parametrize("name, changes, meant", ROPES)
def test_rotary_settings_in_both_spellings(name, changes, meant, tmp_path):
    rope = read(tmp_path, with_changes(name, changes)).rope
    assert (rope.theta, rope.scaling, rope.factor) == meant


def test_rotary_settings_of_gemma_3_are_by_layer(tmp_path):
    local = read(tmp_path, with_changes("gemma3", {})).rope_sliding
    assert (local.theta, local.scaling) == (10_000.0, None)
    changes = dict(rope_local_base_freq=3e4, rope_scaling=LINEAR)
    local = read(tmp_path, with_changes("gemma3", changes)).rope_sliding
    assert (local.theta, local.scaling) == (3e4, None)


def test_llama_3_scaling_takes_its_length_from_three_places(tmp_path):
    for changes, length in (
        ({}, 64),
        (dict(original_max_position_embeddings=16), 16),
        (dict(rope_scaling=dict(LLAMA3, original_max_position_embeddings=32)), 32),
        (
            dict(
                rope_scaling=dict(LLAMA3, original_max_position_embeddings=32),
                original_max_position_embeddings=16,
            ),
            16,
        ),
    ):
        raw = with_changes("llama", {"rope_scaling": LLAMA3, **changes})
        assert read(tmp_path, raw).rope.original_max_positions == length


def test_both_activations_of_a_published_gemma_2_draw_no_warning(tmp_path):
    raw = with_changes(
        "gemma2",
        dict(hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh"),
    )
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loading.read_config(tmp_path)


REFUSED = [
    ("llama", dict(rms_norm_eps=None), "rms_norm_eps=null, leave it out for 1e-06"),
    ("llama", dict(attention_bias=1), "attention_bias=1, it must be true or false"),
    ("llama", dict(head_dim=0), "head_dim=0, it must be a whole number of at least 1"),
    ("llama", dict(rms_norm_eps="1e-6"), "rms_norm_eps='1e-6', it must be a number"),
    ("llama", dict(num_key_value_heads=3), r"must divide.*num_key_value_heads=3"),
    ("llama", dict(rope_theta=None), "rope_theta=null"),
    ("llama", dict(rope_parameters={"rope_theta": None}), "lacks its rope_theta"),
    ("llama", dict(rope_parameters={"rope_theta": "big"}), "rope_theta='big'"),
    ("llama", dict(rope_parameters={"full_attention": LINEAR}), "rope_parameters="),
    ("llama", dict(is_causal=False), "is_causal=False"),
    ("llama", dict(per_layer_config={"0": {"head_dim": 4}}), "per_layer_config="),
    ("mistral", dict(num_key_value_heads=None), "num_key_value_heads=null"),
    ("qwen2", dict(layer_types=["sliding_attention"] * 2), "no sliding_window"),
    ("qwen2", dict(max_window_layers=None), "max_window_layers=null"),
    ("qwen3", dict(layer_types=["full_attention"]), "layer_types of 1 layers"),
    ("gemma2", dict(sliding_window=None), "sliding_window"),
    ("gemma2", dict(hidden_activation=None), "hidden_activation=null"),
    ("gemma2", dict(final_logit_softcapping=0.0), "final_logit_softcapping=0.0"),
    ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
    ("gemma3", dict(rope_scaling=OLD_LINEAR), "rope_scaling=.*name its rope_type"),
    ("gemma3", dict(rope_parameters=LINEAR), "rope_parameters=.*by layer type"),
    (
        "gemma3",
        dict(_sliding_window_pattern=3, layer_types=ABSENT),
        "_sliding_window_pattern=3",
    ),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention=True"),
    ("llama", dict(quantization_config={"quant_method": "fp8"}), "quantised"),
    ("llama", dict(quantization={"bits": 4}), "quantization=.*quantised"),
]


@pytest.mark.parametrize("name, changes, message", REFUSED)
def test_what_has_no_meaning_is_refused_by_name(name, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, with_changes(name, changes))


def test_the_page_of_architectures_is_fresh():
    written = pathlib.Path(__file__).parent.parent / "docs" / "architectures.md"
    message = "run python -m pdecode.checkpoints.page docs/architectures.md"
    assert written.read_text(encoding="utf-8") == page.page(), message


# The generated test. What the reference makes of each configuration, with weights that
# depend on their shapes only.

TOKENS = np.random.default_rng(0).integers(0, 64, 24)


def theirs(raw):
    """(logits [L, V], tensors) of their class; raises what it raises."""
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape)
            if weight.ndim == 1:
                weight.add_(0.3 * noise)
            else:
                weight.copy_(noise * 1.5 / weight.shape[-1] ** 0.5)
        logits = model(torch.tensor(TOKENS % config.vocab_size)[None]).logits[0]
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del values["lm_head.weight"]
    return logits.numpy(), values


def ours(folder, raw, values):
    """Logits [L, V] of the folder; run op by op, for a program each would take long."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    tensors.write(folder / "model.safetensors", values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = loading.read_config(folder)[1]
        blob = b"".join(name.encode() + values[name].tobytes() for name in values)
        key = config, raw.get("model_type"), hashlib.sha256(blob).digest()
        if key not in DONE:
            checkpoint = loading.open_folder(folder)
            params = loading.read_params(checkpoint)
            DONE[key] = logits_of(checkpoint.config, params)
    return DONE[key]


DONE = {}  # logits by what they depend on: most fields change nothing


def logits_of(config, params):
    tokens = jnp.asarray(TOKENS % config.vocab_size, jnp.int32)[None]
    hidden = transformer.forward(config, params, tokens, train=False).hidden
    head = transformer.make_model(config).head(params)
    return np.asarray(vocab_head.logits(head, hidden))[0]


# Another value than the default, where doubling or negating it does not do.
OTHER = {
    "model_type": None,
    "vocab_size": 80,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "head_dim": 16,
    "hidden_act": "gelu",
    "hidden_activation": "gelu",
    "activation_function": "gelu",
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "query_pre_attn_scalar": 20,
    "sliding_window": 3,
    "max_window_layers": 1,
    "n_embd": 64,
    "n_head": 2,
    "n_layer": 1,
    "n_inner": 40,
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 2.0,
    "per_layer_config": {"0": {"head_dim": 16}},
    "dtype": "float32",
    "id2label": {"0": "a", "1": "b"},
    "label2id": {"a": 0},
    "summary_type": "last",
    "summary_activation": "tanh",
    "problem_type": "regression",
}
LAYERS = dict(layer_types=ABSENT, num_hidden_layers=3)
# Changes of several fields at once, by architecture ("" all that have rotary angles).
TOGETHER = {
    "": [
        dict(rope_theta=500.0),
        dict(rope_theta=None),
        dict(rope_theta=500.0, rope_parameters={"rope_theta": 90.0}),
        dict(rope_theta=500.0, rope_parameters={"rope_type": "default"}),
        dict(rope_theta=500.0, rope_parameters=None, rope_scaling=None),
        dict(rope_parameters={}),
        dict(rope_scaling=LINEAR),
        dict(rope_scaling=OLD_LINEAR),
        dict(rope_scaling=dict(LINEAR, type="dynamic")),
        dict(rope_scaling=dict(LINEAR, factor=None)),
        dict(rope_scaling=LINEAR, rope_theta=500.0),
        dict(rope_scaling=LINEAR, rope_parameters={"rope_theta": 500.0}),
        dict(rope_scaling={"type": "default", "factor": 3.0}),
        dict(rope_scaling={"rope_type": "dynamic", "factor": 3.0}),
        dict(rope_scaling=LLAMA3),
        dict(rope_scaling=LLAMA3, original_max_position_embeddings=16),
        dict(rope_scaling=dict(LLAMA3, original_max_position_embeddings=16)),
        dict(
            rope_scaling=dict(LLAMA3, original_max_position_embeddings=16),
            original_max_position_embeddings=32,
        ),
        dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        dict(
            rope_scaling=dict(
                rope_type="longrope", long_factor=[2.0] * 4, short_factor=[1.0] * 4
            )
        ),
        dict(rope_scaling={"rope_type": "proportional", "factor": 2.0}),
        dict(partial_rotary_factor=0.5),
        dict(rope_parameters={"rope_theta": 500.0, "partial_rotary_factor": 0.5}),
        dict(rope_parameters={"full_attention": LINEAR}),
        dict(
            rope_parameters={
                "full_attention": dict(LINEAR, rope_theta=900.0),
                "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
            }
        ),
        dict(sliding_window=3, use_sliding_window=True),
        dict(sliding_window=3, use_sliding_window=True, max_window_layers=1),
        dict(sliding_window=None, use_sliding_window=True),
        dict(sliding_window=3, use_sliding_window=False),
        dict(layer_types=["sliding_attention"] * 2, sliding_window=3),
        dict(num_key_value_heads=ABSENT, num_attention_heads=8),
        dict(head_dim=ABSENT),
        dict(head_dim=None),
        dict(is_causal=False),
        dict(use_bidirectional_attention=True),
        dict(hidden_act="relu"),
        dict(hidden_act="gelu_python", hidden_activation="gelu_fast"),
        dict(hidden_act="gelu_accurate"),
        dict(tie_word_embeddings=True, attention_bias=True),
        dict(mystery=3),
    ],
    "qwen2": [
        dict(
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=3,
            use_sliding_window=True,
        ),
        dict(layer_types=["full_attention"] * 3),
    ],
    "gemma3": [
        dict(rope_local_base_freq=70.0),
        dict(rope_local_base_freq=None),
        dict(rope_local_base_freq=70.0, rope_theta=500.0, rope_scaling=LINEAR),
        dict(rope_parameters={"full_attention": None}, rope_theta=90.0),
        dict(
            rope_parameters={"sliding_attention": {"rope_theta": 70.0}}, rope_theta=90.0
        ),
        dict(LAYERS, sliding_window_pattern=2),
        dict(LAYERS, sliding_window_pattern=None),
        dict(LAYERS, _sliding_window_pattern=2),
        dict(LAYERS, _sliding_window_pattern=6),
        dict(LAYERS, num_hidden_layers=7),
    ],
    "gemma2": [
        dict(layer_types=["full_attention", "sliding_attention"]),
        dict(hidden_act="gelu", hidden_activation="gelu_pytorch_tanh"),
    ],
    "gpt2": [
        dict(hidden_size=64),
        dict(n_embd=ABSENT, hidden_size=64),
        dict(num_hidden_layers=2, num_attention_heads=8),
        dict(max_position_embeddings=48),
        dict(hidden_size=None),
        dict(scale_attn_weights=False),
        dict(n_ctx=8),
        dict(is_causal=False),
    ],
}
TOGETHER["qwen3"] = TOGETHER["qwen2"]


def variants(name):
    """(changes, names that a refusal may give) for every field of their class."""
    kind = type(transformers.AutoConfig.for_model(BASES[name]["model_type"]))
    common = {each.name for each in dataclasses.fields(transformers.PreTrainedConfig)}
    for field in dataclasses.fields(kind):
        if name != "llama" and field.name in common - {"tie_word_embeddings"}:
            continue  # what all classes share is tried once
        key, base = field.name, BASES[name].get(field.name, field.default)
        if key.startswith("_") or OTHER.get(key, "") is None:
            continue
        yield {key: ABSENT}
        yield {key: None}
        if key in OTHER:
            value = OTHER[key]
        elif isinstance(base, bool):
            value = not base
        elif isinstance(base, (int, float)):
            value = base * 2
        else:
            continue
        yield {key: value}
    if name != "gpt2":
        yield from TOGETHER[""]
    yield from TOGETHER.get(name, [])


@oracle
@needs_oracle
@pytest.mark.parametrize("name", BASES)
def test_every_field_of_a_class_is_honoured_or_refused(name, tmp_path):
    counts = {"equal": 0, "refused": 0}
    wrong = []
    for changes in variants(name):
        raw = with_changes(name, changes)
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "n_embd"):
            if changes.get(key) is ABSENT and key in BASES[name]:
                break  # a model of the published size
        else:
            verdict, detail = compared(tmp_path / "folder", raw, changes)
            if verdict in counts:
                counts[verdict] += 1
            else:
                wrong.append(f"{changes}: {verdict} {detail}")
    assert not wrong, "\n".join(wrong)
    assert counts["equal"] > 40 and counts["refused"] > 5, counts


def compared(folder, raw, changes):
    """("equal" | "refused" | what is wrong, details) of one configuration."""
    try:
        with quiet():
            want, values = theirs(raw)
    except Exception as error:
        want, values, failure = None, {}, " ".join(str(error).split())[:120]
    try:
        config = read(folder, raw)
        got = None if want is None else ours(folder, raw, values)
    except ValueError as error:
        named = any(key in str(error) for key in changes)
        return ("refused" if named else "refused without a name"), str(error)
    if want is None and set(changes) <= fields.HARMLESS:
        rest = {key: value for key, value in raw.items() if key not in changes}
        return ("equal" if config == read(folder, rest) else "not harmless"), failure
    if want is None:
        return "accepted what they refuse", failure
    worst = float(np.abs(got - want).max()) if got.shape == want.shape else np.inf
    return ("equal" if worst < 1e-4 else "other logits"), worst


@contextlib.contextmanager
def quiet():
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
