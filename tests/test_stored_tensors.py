"""Which tensors a folder may leave out, share, rename, spread over files, or pack.

The reference is transformers' `from_pretrained` on the same folder, where the extra
`oracle` is installed; without it the tests compare with the folder that was changed.
"""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoints import check_refusal, command
from test_config_fields import SIZES, logits_of

from pdecode import checkpoints
from pdecode.checkpoints import architectures, convert, loading, tensors
from pdecode.models import transformer

try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None

LLAMA = dict(SIZES, model_type="llama", architectures=["LlamaForCausalLM"])
GPT2 = dict(
    model_type="gpt2", vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64
)
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def random_tensors(raw):
    """Tensors of a whole folder by name, the head among them."""
    family = architectures.of(raw)
    config = family.config(architectures.Fields({**raw, "tie_word_embeddings": False}))
    shapes = jax.eval_shape(lambda k: transformer.init(config, k), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in loading.flat(shapes)}
    draws, found = np.random.default_rng(0), {}
    for path, source in family.names(config).items():
        shape = loading.source_shape(source, shapes[path])
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        value = scale * draws.normal(size=shape) + (len(shape) == 1)
        found |= {name: value.astype(np.float32) for name in source.names}
    return found


def write(folder, raw, values, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    tensors.write(folder / name, values, {"format": "pt"})


def logits(folder):
    """Ours, which must be theirs where they can be asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint = loading.open_folder(folder)
        got = logits_of(checkpoint.config, loading.read_params(checkpoint))
    if transformers is not None:
        from test_config_fields import TOKENS

        transformers.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        with torch.no_grad():
            want = model(torch.tensor(TOKENS % 64)[None]).logits[0].numpy()
        np.testing.assert_allclose(got, want, atol=1e-4)
    return got


def test_a_head_that_is_called_tied_and_stored(tmp_path):
    values = random_tensors(LLAMA)
    tied = dict(LLAMA, tie_word_embeddings=True)
    write(tmp_path / "untied", LLAMA, values)
    untied = logits(tmp_path / "untied")
    # Another head than the embedding is kept, with a line about it.
    write(tmp_path / "both", tied, values)
    np.testing.assert_array_equal(logits(tmp_path / "both"), untied)
    with pytest.warns(UserWarning, match="another lm_head.weight, which is used"):
        checkpoints.load(tmp_path / "both")
    # An equal one, none, or the head alone: one matrix for both.
    write(tmp_path / "equal", tied, values | {HEAD: values[EMBED]})
    shared = {name: value for name, value in values.items() if name != HEAD}
    write(tmp_path / "shared", tied, shared)
    alone = {name: value for name, value in shared.items() if name != EMBED}
    write(tmp_path / "alone", tied, alone | {HEAD: values[EMBED]})
    want = logits(tmp_path / "equal")
    assert np.abs(want - untied).max() > 0.1
    for name in ("equal", "shared", "alone"):
        np.testing.assert_array_equal(logits(tmp_path / name), want)
        assert "head" not in checkpoints.load(tmp_path / name)[1]
    write(tmp_path / "shared", LLAMA, shared)
    check_refusal(tmp_path / "shared", "1 missing: lm_head.weight")


@pytest.mark.parametrize("which", ["both", "alone"])
def test_a_round_trip_of_a_head_that_config_json_is_wrong_about(which, tmp_path):
    values = random_tensors(LLAMA)
    if which == "alone":
        del values[EMBED]
    write(tmp_path / "one", dict(LLAMA, tie_word_embeddings=True), values)
    for one, other in (("one", "two"), ("two", "three")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            convert.convert(tmp_path / one, tmp_path / other)
            convert.info(tmp_path / other)
    assert set(tensors.index(tmp_path / "three")) == set(values)
    np.testing.assert_array_equal(logits(tmp_path / "three"), logits(tmp_path / "one"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (checkpoints.load(tmp_path / name)[1] for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("raw", [LLAMA, GPT2])
def test_a_prefix_may_be_missing(raw, tmp_path):
    values = random_tensors(raw)
    raw = dict(raw, tie_word_embeddings=True)
    del values[HEAD]
    write(tmp_path / "whole", raw, values)
    short = {name.partition(".")[2]: value for name, value in values.items()}
    write(tmp_path / "short", raw, short)
    want = logits(tmp_path / "whole")
    np.testing.assert_array_equal(logits(tmp_path / "short"), want)


def listed(folder, files, owner):
    """Files of tensors, and an index that says whose counts."""
    for name, values in files.items():
        write(folder, LLAMA, values, name)
    listing = {"metadata": {}, "weight_map": owner}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))


def test_one_file_may_lie_over_another(tmp_path):
    values = random_tensors(LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    other = {name: -values[name]}
    write(tmp_path / "want", LLAMA, values | other)
    want = logits(tmp_path / "want")
    files = {"a.safetensors": values, "b.safetensors": other}
    owner = dict.fromkeys(values, "a.safetensors")
    listed(tmp_path / "over", files, owner | {name: "b.safetensors"})
    np.testing.assert_array_equal(logits(tmp_path / "over"), want)
    # Also where the file that counts comes first by name.
    files = {"b.safetensors": values, "a.safetensors": other}
    owner = dict.fromkeys(values, "b.safetensors")
    listed(tmp_path / "under", files, owner | {name: "a.safetensors"})
    got = checkpoints.load(tmp_path / "under")[1]
    want = checkpoints.load(tmp_path / "want")[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)
    # Without a listing nobody says which.
    (tmp_path / "over" / "model.safetensors.index.json").unlink()
    check_refusal(tmp_path / "over", f"tensors in more than one file: .*{name}")


def test_a_file_without_metadata(tmp_path):
    values = random_tensors(LLAMA)
    write(tmp_path, LLAMA, values)
    tensors.write(tmp_path / "model.safetensors", values)
    assert set(checkpoints.load(tmp_path)[1]) >= {"embed", "head"}


QUERY = "model.layers.0.self_attn.q_proj"
PACKED = [
    {f"{QUERY}.weight": np.zeros((32, 4), np.uint32)},
    {f"{QUERY}.weight": np.zeros((32, 32), np.int8)},
    {f"{QUERY}.scales": np.zeros((32, 4), np.float16)},
    {f"{QUERY}.qweight": np.zeros((4, 32), np.int32)},
    {f"{QUERY}.weight.absmax": np.zeros(8, np.float32)},
    {f"{QUERY}.weight_scale_inv": np.zeros((1, 1), np.float32)},
    {f"{QUERY}.weight": np.zeros((32, 32), tensors.DTYPES["F8_E4M3"])},
]


@pytest.mark.parametrize("packed", PACKED)
def test_a_quantised_folder_is_called_quantised(packed, tmp_path):
    write(tmp_path, LLAMA, random_tensors(LLAMA) | packed)
    check_refusal(tmp_path, rf"is quantised, which is not supported \({QUERY}")


@pytest.mark.parametrize("name", ["quantization_config", "quantization"])
def test_a_quantised_configuration_is_called_quantised(name, tmp_path):
    raw = dict(LLAMA, **{name: dict(quant_method="awq", bits=4)})
    write(tmp_path, raw, random_tensors(LLAMA))
    check_refusal(tmp_path, f"{name}=.*quantised checkpoints are not supported")


def test_dtypes_that_no_weights_come_in_are_named(tmp_path):
    write(tmp_path, LLAMA, random_tensors(LLAMA))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4" ', 1))
    check_refusal(tmp_path, "has tensors of dtype F4: quantised checkpoints are not")


@pytest.mark.oracle
@pytest.mark.skipif(torch is None, reason="needs the extra oracle")
def test_mistral_slides_by_default(tmp_path):
    """Past 4,096 tokens, where a class default shows."""
    raw = dict(
        SIZES, model_type="mistral", num_hidden_layers=1, max_position_embeddings=5000
    )
    write(tmp_path, raw, random_tensors(raw))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    ).eval()
    tokens = np.random.default_rng(0).integers(0, 64, 4200)
    with torch.no_grad():
        want = model(torch.tensor(tokens)[None]).logits[0, -8:].numpy()
    config = loading.open_folder(tmp_path).config
    _, params, _ = checkpoints.load(tmp_path)
    for window in (4096, None):
        changed = dataclasses.replace(config, window=window, sliding=())
        hidden = transformer.forward(changed, params, jnp.asarray(tokens[None])).hidden
        got = np.asarray(hidden)[0, -8:] @ np.asarray(params["head"]).T
        assert np.allclose(got, want, atol=1e-4) == (window == config.window)


def test_info_of_a_quantised_folder_is_one_line(tmp_path):
    write(tmp_path, LLAMA, random_tensors(LLAMA) | PACKED[0])
    code, out, err = command("info", tmp_path)
    assert (code, out) == (2, "") and "quantised" in err and err.count("\n") == 1
