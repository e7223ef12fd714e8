"""Checkpoints from disk: the authors' numbers, and clear words for broken folders."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from pdecode import checkpoints, decode, methods, prompts
from pdecode.checkpoints import convert, drafters, loading, tensors
from pdecode.cli import main as cli
from pdecode.contracts import Query, Sampling, Visibility
from pdecode.families import canvases as method
from pdecode.kernels.head import dense
from pdecode.models import diffusion_gemma
from pdecode.sampling import BANNED, filter_logits

GOLDEN = pathlib.Path(__file__).parent / "golden"
TOLERANCE = 2e-4


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    """Tests compile for themselves and write nothing to the user's folders."""
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda: None)


def expected(name):
    return dict(np.load(GOLDEN / name / "expected.npz"))


def full_call(model, params, tokens, stop=None):
    """Logits [B, L, V] of one call over whole rows, all lanes seeing all."""
    batch, length = tokens.shape
    rows = prompts.from_rows(list(np.asarray(tokens)), max_new_tokens=1)
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    visible = Visibility(jnp.zeros_like(place), jnp.full_like(place, length))
    query = Query(jnp.asarray(tokens), place, place, visible)
    cache = model.init_cache(rows, length + 1)
    hidden = jax.jit(model.apply)(params, query, cache)[0].hidden
    return dense.logits(model.head(params), hidden)


def test_llada_logits():
    model, params, tokenizer = checkpoints.load(GOLDEN / "llada_tiny")
    want = expected("llada_tiny")
    got = full_call(model, params, want["logits_tokens"])
    np.testing.assert_allclose(got, want["logits"], atol=TOLERANCE)
    facts = (model.mask_id, model.eos_ids, model.predicts, model.attention)
    assert facts == (126, (125,), "masked", "bidirectional")
    assert tokenizer.decode([3, 4]) == "3 4"
    with pytest.raises(ValueError, match=r"no tokenizer\.json.*token ids"):
        tokenizer.encode("hello")


def test_dream_logits_are_those_of_the_slot_to_the_left():
    model, params, _ = checkpoints.load(GOLDEN / "dream_tiny")
    want = expected("dream_tiny")
    got = full_call(model, params, want["logits_tokens"])
    raw = want["logits"]
    shifted = np.concatenate([raw[:, :1], raw[:, :-1]], axis=1)
    np.testing.assert_allclose(got, shifted, atol=TOLERANCE)


class Gemma:
    """The tiny DiffusionGemma with all taps."""

    def __init__(self):
        tiny = loading.open_folder(GOLDEN / "diffusion_gemma_tiny")
        taps = ("embed", "layer_0", "layer_1", "layer_2")
        config = tiny.config.__class__(**{**vars(tiny.config), "taps": taps})
        self.params = loading.read_params(tiny)
        self.model = diffusion_gemma.make_model(config)
        self.encode = jax.jit(self.model.encode)
        self.apply = jax.jit(self.model.apply)

    def logits(self, hidden):
        return dense.logits(self.model.head(self.params), hidden)


@pytest.fixture(scope="module")
def gemma():
    return Gemma()


def ragged(ids, mask):
    """Left-padded rows as rows from index 0: rotary positions are relative."""
    return [row[keep.astype(bool)] for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("probe", ["probe0", "probe1"])
def test_diffusion_gemma_arrays(gemma, probe):
    want = {
        name.removeprefix(f"{probe}_"): value
        for name, value in expected("diffusion_gemma_tiny").items()
        if name.startswith(probe)
    }
    rows = ragged(want["ids"], want["mask"])
    prompt = prompts.from_rows(rows, max_new_tokens=1)
    batch, width = prompt.tokens.shape
    size = want["canvas"].shape[1]
    lengths = prompt.lengths[:, None]
    lanes = jnp.arange(size, dtype=jnp.int32)[None]

    def causal(tokens, place, cache):
        slots = jnp.where(place < lengths + size, place, 10**6)
        visible = Visibility(jnp.zeros_like(place), place + 1)
        query = Query(jnp.asarray(tokens), place, slots, visible)
        return gemma.encode(gemma.params, query, cache)

    def denoise(canvas, stop, cache, beliefs=None):
        place = stop + lanes
        visible = Visibility(
            jnp.zeros_like(place),
            jnp.broadcast_to(stop, place.shape),
            None,
            jnp.ones((batch, size, size), bool),
        )
        weight = gemma.model.head(gemma.params).weight
        extra = jnp.zeros((batch, size, weight.shape[1]))
        if beliefs is not None:
            extra = jax.nn.softmax(jnp.asarray(beliefs)) @ weight
        has_extra = jnp.full((batch, size), beliefs is not None)
        slots = jnp.full_like(place, 10**6)
        query = Query(jnp.asarray(canvas), place, slots, visible, extra, has_extra)
        output, after = gemma.apply(gemma.params, query, cache)
        jax.tree.map(np.testing.assert_array_equal, after, cache)
        return output, gemma.logits(output.hidden)

    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    cache = gemma.model.init_cache(prompt, width + 2 * size + 1)
    output, cache = causal(prompt.tokens, place, cache)
    for row, ids in enumerate(rows):
        got = gemma.logits(output.hidden)[row, : len(ids)]
        wanted = want["encode_logits"][row, width - len(ids) :]
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
    first, logits = denoise(want["canvas"], lengths, cache)
    np.testing.assert_allclose(logits, want["denoise_logits"], atol=TOLERANCE)
    second, logits = denoise(
        want["canvas"], lengths, cache, beliefs=want["self_cond_logits"]
    )
    np.testing.assert_allclose(logits, want["denoise_sc_logits"], atol=TOLERANCE)
    if probe == "probe0":
        for name, value in (
            ("denoise_input", first.taps["embed"]),
            ("denoise_sc_input", second.taps["embed"]),
        ):
            np.testing.assert_allclose(value, want[name], atol=TOLERANCE)
        for layer in range(3):
            tap = f"layer_{layer}"
            for name, taps in (("encode", output.taps), ("denoise", first.taps)):
                wanted = want[f"{name}_layer{layer}"]
                np.testing.assert_allclose(taps[tap], wanted, atol=TOLERANCE)
    output, cache = causal(want["ids2"], lengths + lanes, cache)
    got = gemma.logits(output.hidden)
    np.testing.assert_allclose(got, want["encode2_logits"], atol=TOLERANCE)
    _, logits = denoise(want["canvas2"], lengths + size, cache)
    np.testing.assert_allclose(logits, want["denoise2_logits"], atol=TOLERANCE)


def recorded(arrays, case):
    """Draws that replay arrays [C, N, B, L] instead of a generator."""
    stacks = [jnp.asarray(arrays[f"{case}_{name}"]) for name in ("sampled", "renoise")]
    begin = jnp.asarray(arrays[f"{case}_init_canvas"])

    def pick(stack, canvas, step):
        row = jnp.arange(canvas.shape[0])
        limit = jnp.minimum(canvas, stack.shape[0] - 1)
        return stack[limit, jnp.maximum(step, 0), row]

    def sample(keys, canvas, step, positions, log_probs):
        return pick(stacks[0], canvas, step)

    def noise(keys, canvas, step, positions, vocab_size):
        row = jnp.arange(canvas.shape[0])
        fresh = begin[jnp.minimum(canvas, begin.shape[0] - 1), row]
        return jnp.where(step[:, None] < 0, fresh, pick(stacks[1], canvas, step))

    return method.Draws(sample, noise)


@pytest.mark.parametrize(
    "number",
    [0, *(pytest.param(number, marks=pytest.mark.thorough) for number in (1, 2))],
)
def test_diffusion_gemma_generations(gemma, number):
    arrays = expected("diffusion_gemma_tiny")
    cases = json.loads((GOLDEN / "diffusion_gemma_tiny/cases.json").read_text())
    case = cases["generations"][number]
    name, settings = case["name"], dict(case["settings"])
    model = gemma.model._replace(eos_ids=tuple(settings.pop("eos_token_id")))
    pad = settings.pop("pad_token_id")
    decoder = method.canvases(model, recorded(arrays, name), **settings)
    prompt = prompts.from_rows(
        ragged(arrays[f"{name}_prompt"], arrays[f"{name}_mask"]),
        max_new_tokens=settings["max_new_tokens"],
    )
    size, num_steps = model.block_len, settings["max_denoising_steps"]

    def save(state, info):
        return state.canvas, state.index, state.step, state.history, state.finished

    bound = case["canvases"] * num_steps

    @jax.jit
    def run(params, prompt, key):
        traced = decode.with_trace(decoder, save, bound)
        state, stats = decode.decode_state(traced, params, prompt, key)
        return decode.finish(traced, state), stats, state.saved

    out, stats, saved = run(gemma.params, prompt, jax.random.key(0))
    canvas, index, step, history, finished = map(np.asarray, saved)
    generated = arrays[f"{name}_sequences"][:, arrays[f"{name}_prompt"].shape[1] :]
    done = arrays[f"{name}_done"]  # [C, N, B]
    for row in range(prompt.tokens.shape[0]):
        start, length = int(prompt.lengths[row]), int(out.lengths[row])
        text = generated[row][: settings["max_new_tokens"]]
        is_end = np.isin(text, model.eos_ids)
        want = text[: int(np.argmax(is_end)) if is_end.any() else len(text)]
        np.testing.assert_array_equal(out.tokens[row, start : start + length], want)
        assert int(out.stopped_by[row]) == int(is_end.any())
        # Denoising calls, one by one, against the recorded canvases.
        turn, denoised = 0, 0
        for place in range(case["canvases"]):
            if denoised == int(arrays[f"{name}_nfe"][row]):
                break
            for j in range(num_steps):
                denoised += 1
                ends = bool(done[place, j, row]) or j + 1 == num_steps
                if not ends:
                    assert (index[turn, row], step[turn, row]) == (place, j + 1)
                    np.testing.assert_array_equal(
                        canvas[turn, row], arrays[f"{name}_canvas"][place, j, row]
                    )
                    np.testing.assert_array_equal(
                        history[turn, row, 0], arrays[f"{name}_argmax"][place, j, row]
                    )
                else:
                    final = np.asarray(out.tokens[row])[start + place * size :][:size]
                    recorded_final = arrays[f"{name}_argmax"][place, j, row]
                    upto = min(len(want) + 1 - place * size, size)
                    np.testing.assert_array_equal(final[:upto], recorded_final[:upto])
                turn += 1
                if ends:
                    break
        assert finished[turn - 1, row] and denoised == arrays[f"{name}_nfe"][row]
        encodes = int(np.ceil((length + int(is_end.any())) / size)) - 1
        assert int(stats.num_calls[row]) == denoised + encodes
        assert int(stats.num_prefill_calls[row]) == 1
    del pad


FOLDERS = ("llada_tiny", "dream_tiny", "diffusion_gemma_tiny")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_round_trip_through_orbax_is_equal_bit_for_bit(name, tmp_path):
    source, there, back = GOLDEN / name, tmp_path / "orbax", tmp_path / "back"
    for one, other in ((source, there), (there, back)):
        assert command("convert", one, other) == (0, f"written: {other}\n", "")
    before, after = tensors.index(source), tensors.index(back)
    assert set(before) == set(after)
    for key in before:
        one, two = tensors.read(before[key]), tensors.read(after[key])
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    model, params, _ = checkpoints.load(source)
    again, restored, _ = checkpoints.load(there)
    assert again is model
    jax.tree.map(np.testing.assert_array_equal, params, restored)
    facts = convert.info(source, {"tensor": 2})
    assert facts == convert.info(there, {"tensor": 2})
    assert facts == convert.info(back, {"tensor": 2})
    check_refusal(None, "exists already: name a new folder", "convert", source, there)


def test_a_round_trip_keeps_the_names_in_the_files(broken, tmp_path):
    def change(values):
        for name in list(values):
            values[name.removeprefix("model.")] = values.pop(name)

    broken.rewrite(change)
    before = set(tensors.index(broken.folder))
    convert.convert(broken.folder, tmp_path / "orbax")
    convert.convert(tmp_path / "orbax", tmp_path / "back")
    assert set(tensors.index(tmp_path / "back")) == before
    _, params, _ = checkpoints.load(tmp_path / "back")
    _, whole, _ = checkpoints.load(GOLDEN / "llada_tiny")
    jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.mark.parametrize("name", FOLDERS)
def test_sharded_loading_gives_the_same_arrays(name):
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    axes = ("fsdp", "tensor", "expert")
    mesh = jax.sharding.Mesh(devices, axes, axis_types=(AxisType.Auto,) * 3)
    _, params, _ = checkpoints.load(GOLDEN / name)
    _, sharded, _ = checkpoints.load(GOLDEN / name, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, params, sharded)
    leaves = jax.tree.leaves(sharded)
    spread = sum(leaf.size for leaf in leaves if not leaf.is_fully_replicated)
    assert spread > 0.8 * sum(leaf.size for leaf in leaves)
    if name == "diffusion_gemma_tiny":
        gate = sharded["layer_0"]["experts"]["gate"]
        assert gate.sharding.spec == jax.sharding.PartitionSpec(
            "expert", "fsdp", "tensor"
        )


def test_info():
    facts = convert.info(GOLDEN / "llada_tiny", {"tensor": 4})
    size = sum(
        np.prod(entry.shape) for entry in tensors.index(GOLDEN / "llada_tiny").values()
    )
    assert facts["architecture"] == "llada"
    assert facts["num_params"] == size
    assert facts["stored"] == {"float32": 4 * size}
    assert facts["memory"] == {"float32": 4 * size, "bfloat16": 2 * size}
    with pytest.raises(ValueError, match="unknown mesh axis rows; known: data, exp"):
        convert.info(GOLDEN / "llada_tiny", {"rows": 4})
    local = facts["per_device"]["bfloat16"]
    assert size / 4 * 2 < local < size / 3 * 2  # norms are whole everywhere


def test_dtype_is_that_of_everything():
    model, params, _ = checkpoints.load(GOLDEN / "llada_tiny", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    rows = prompts.from_rows([[1, 2]], max_new_tokens=1)
    leaves = jax.tree.leaves(model.init_cache(rows, 4))
    assert {leaf.dtype.name for leaf in leaves} == {"bfloat16"}


class Broken:
    """A copy of a tiny checkpoint to damage."""

    def __init__(self, folder):
        self.folder = folder / "copy"
        shutil.copytree(GOLDEN / "llada_tiny", self.folder)
        self.path = self.folder / "model.safetensors"

    def config(self, **changes):
        path = self.folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def rewrite(self, change):
        values = {key: tensors.read(e) for key, e in tensors.index(self.folder).items()}
        change(values)
        tensors.write(self.path, values)

    def split(self):
        """Two shards and their index."""
        values = {key: tensors.read(e) for key, e in tensors.index(self.folder).items()}
        names = sorted(values)
        half = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(names)}
        for file in set(half.values()):
            part = {key: values[key] for key in names if half[key] == file}
            tensors.write(self.folder / file, part)
        self.path.unlink()
        listing = self.folder / "model.safetensors.index.json"
        listing.write_text(json.dumps({"weight_map": half}))


@pytest.fixture
def broken(tmp_path):
    return Broken(tmp_path)


NORM = "model.transformer.blocks.1.ff_norm.weight"


def test_shards_load_like_one_file(broken):
    broken.split()
    _, params, _ = checkpoints.load(broken.folder)
    _, whole, _ = checkpoints.load(GOLDEN / "llada_tiny")
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def command(*arguments):
    """(exit code, standard output, standard error) of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(each) for each in arguments])
    return code, out.getvalue(), err.getvalue()


def check_refusal(folder, message, *arguments):
    """A ValueError from Python, one line and exit code 2 from the command line."""
    if not arguments:
        arguments = ("generate", "--model", folder, "--prompt-ids", "[[1]]")
        with pytest.raises(ValueError, match=message):
            checkpoints.load(folder)
    code, out, err = command(*arguments)
    assert code == cli.BAD_INPUT and out == ""
    assert err.count("\n") == 1 and err.startswith("pdecode: error: ")
    assert re.search(message, err), err


def test_damaged_files_are_refused(broken):
    data = broken.path.read_bytes()
    broken.path.write_bytes(data[:-100])
    check_refusal(broken.folder, "truncated: its tensors end at byte")
    broken.path.write_bytes(data[:5])
    check_refusal(broken.folder, "truncated or no safetensors")
    broken.path.write_bytes(data[:8] + b"x" * (len(data) - 8))
    check_refusal(broken.folder, "damaged header")
    broken.path.unlink()
    check_refusal(broken.folder, r"has no \*\.safetensors file")
    (broken.folder / "pytorch_model.bin").write_bytes(b"")
    check_refusal(broken.folder, r"pickled checkpoints are refused because")
    (broken.folder / "config.json").write_text("{")
    check_refusal(broken.folder, r"config\.json is damaged")
    (broken.folder / "config.json").unlink()
    check_refusal(broken.folder, r"has no config\.json")
    check_refusal(broken.folder / "nowhere", "no (such )?folder")


def test_a_partial_download_is_refused(broken):
    broken.split()
    (broken.folder / "part-1.safetensors").rename(
        broken.folder / "part-1.safetensors.incomplete"
    )
    check_refusal(broken.folder, "partial download: 1 of 2 shards.*part-1.*unfinished")


def test_a_damaged_listing_is_refused(broken):
    broken.split()
    listing = broken.folder / "model.safetensors.index.json"
    files = json.loads(listing.read_text())["weight_map"]
    for text, message in (
        ("[", r"index\.json is damaged"),
        ("[]", r"index\.json is damaged"),
        (json.dumps({"weight_map": list(files)}), r"index\.json is damaged"),
        (json.dumps({"weight_map": {NORM: "../x"}}), r"names files elsewhere: \.\./x"),
        (
            json.dumps({"weight_map": files | {"surprise": "part-0.safetensors"}}),
            "promises tensors that no shard has: surprise",
        ),
    ):
        listing.write_text(text)
        check_refusal(broken.folder, message)


def test_wrong_tensors_are_named(broken):
    def change(values):
        del values["model.transformer.ln_f.weight"]
        values["model.transformer.surprise"] = np.zeros(3, np.float32)
        values[NORM] = np.zeros(63, np.float32)

    broken.rewrite(change)
    check_refusal(
        broken.folder,
        r"1 missing: model\.transformer\.ln_f\.weight; 1 of the wrong shape: "
        rf"{NORM} \(63,\), not \(64,\); 1 unexpected: model\.transformer\.surprise",
    )


def test_configurations_are_refused_by_field(broken):
    broken.config(alibi=True)
    check_refusal(broken.folder, "alibi=True, which is not supported; supported: False")
    broken.config(alibi=False, n_heads=None)
    check_refusal(broken.folder, "lacks n_heads")
    broken.config(n_heads=4, activation_type="quux")
    check_refusal(broken.folder, "activation_type='quux'.*supported: silu")
    broken.config(model_type="quux")
    check_refusal(broken.folder, "unknown architecture 'quux'; known: llama, mistral")
    broken.config(model_type="llada", activation_type="silu", mystery=3)
    message = "config.json fields that were not understood and are ignored: mystery"
    with pytest.warns(UserWarning, match=message):
        checkpoints.load(broken.folder)
    code, _, err = command("info", broken.folder)
    assert (code, err) == (0, f"pdecode: warning: {message}\n")


LLAMA = dict(
    model_type="llama",
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
)
MIXED = dict(LLAMA, model_type="qwen3_moe")


@pytest.mark.parametrize(
    "config, message",
    [
        (
            dict(LLAMA, rope_scaling={"type": "yarn", "factor": 2.0}),
            "rope_scaling of rope type 'yarn'.*supported: default, linear, dyn",
        ),
        (
            dict(LLAMA, rope_scaling={"rope_type": "llama3"}),
            "'llama3', but lacks its f",
        ),
        (dict(LLAMA, rope_scaling="linear"), "settings 'linear', which are no object"),
        (dict(LLAMA, rope_parameters=[1]), r"settings \[1\], which are no object"),
        (dict(LLAMA, rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary"),
        (dict(LLAMA, hidden_act="relu2"), "hidden_act='relu2'.*supported: silu"),
        (dict(LLAMA, quantization_config={"bits": 4}), "quantization_config="),
        (
            dict(LLAMA, num_attention_heads=0),
            "num_heads=0 must be an int of",
        ),
        (dict(LLAMA, num_attention_heads=5), "num_heads=5 must divide width=32"),
        (dict(LLAMA, num_key_value_heads=3), "num_kv_heads=3 must divide num_heads=4"),
        (dict(LLAMA, hidden_size="32"), "width='32' must be an int"),
        (dict(LLAMA, eos_token_id="</s>"), "eos_token_id='</s>', which is no id"),
        (dict(LLAMA, model_type="dream"), "lacks mask_token_id"),
        (
            dict(LLAMA, model_type="dream", mask_token_id=96, num_key_value_heads=4),
            "mask_id=96 is no id of.*mask_token_id=96",
        ),
        (dict(MIXED, decoder_sparse_step=2), "decoder_sparse_step=2.*supported: 1"),
        (dict(MIXED, mlp_only_layers=[0]), r"mlp_only_layers=\[0\]"),
        (dict(MIXED, num_experts=4), "lacks num_experts_per_tok"),
        (
            dict(LLAMA, model_type="qwen2", layer_types=["linear_attention"] * 2),
            "layer_types linear_attention, which are not supported",
        ),
        (
            dict(LLAMA, model_type="gemma2", layer_types=["full_attention"]),
            "layer_types of 1 layers, but num_hidden_layers=2",
        ),
        (dict(LLAMA, model_type="gemma2", attention_bias=True), "attention_bias=True"),
        (dict(model_type="diffusion_gemma"), "lacks canvas_length"),
        (
            dict(model_type="diffusion_gemma", canvas_length=8, text_config=3),
            "has 3 where an object belongs",
        ),
        ([LLAMA], "damaged: it holds no object"),
    ],
)
def test_what_a_configuration_says_and_we_cannot_do(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_refusal(tmp_path, message)


def test_a_dtype_is_one_of_three():
    message = "dtype='int4' must be one of float32, bfloat16, float16"
    arguments = ("--model", GOLDEN / "llada_tiny", "--dtype", "int4")
    check_refusal(None, message, "generate", *arguments, "--prompt-ids", "[[1]]")


def test_a_model_finds_its_method():
    rows = [[3, 4, 5], [6]]
    made = generated("diffusion_gemma_tiny", rows, "--max-new-tokens", 12)
    assert made["method"] == "diffusion_gemma" and len(made["tokens"]) == 2
    assert all(1 <= calls <= 48 for calls in made["stats"]["calls"])


def test_text_without_a_tokenizer_is_refused():
    check_refusal(
        None,
        r"llada_tiny has no tokenizer\.json: give the prompt as token ids",
        *("generate", "--model", GOLDEN / "llada_tiny", "--prompt", "hello"),
    )


@pytest.mark.parametrize(
    "name, method, message",
    [
        (
            "llada_tiny",
            "jacobi",
            "jacobi needs a causal model, but .* is a model",
        ),
        ("llada_tiny", "autoregressive", r"use one of .*any_order, .*dream, .*llada"),
        ("llada_tiny", "diffusion_gemma", "needs a model trained with uniform noise"),
        ("diffusion_gemma_tiny", "fast_dllm", "use one of diffusion_gemma"),
    ],
)
def test_a_method_that_does_not_fit_names_those_that_do(name, method, message):
    folder = GOLDEN / name
    arguments = ("--model", folder, "--method", method, "--prompt-ids", "[[1]]")
    check_refusal(None, message, "generate", *arguments)


def test_methods_refuse_models_that_do_not_fit():
    model, params, _ = checkpoints.load(GOLDEN / "llada_tiny")
    rows = prompts.from_rows([[1, 2, 3]], max_new_tokens=4)
    with pytest.raises(ValueError, match=r"uniform noise.*use llada or dream"):
        decode.run(
            methods.diffusion_gemma,
            model,
            params,
            rows,
            jax.random.key(0),
            max_new_tokens=4,
        )


def save(folder, **arrays):
    folder.mkdir(exist_ok=True)
    tensors.write(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text("{}")


def test_medusa_heads(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for head in range(3):
        arrays[f"{head}.0.linear.weight"] = rng.normal(size=(4, 4))
        arrays[f"{head}.0.linear.bias"] = rng.normal(size=4)
        arrays[f"{head}.1.weight"] = rng.normal(size=(7, 4))
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    save(tmp_path / "alone", **arrays)
    inside = {f"medusa_head.{name}": value for name, value in arrays.items()}
    save(tmp_path / "inside", **inside, **{"lm_head.weight": np.zeros((7, 4))})
    for name in ("alone", "inside"):
        heads = drafters.medusa(tmp_path / name)
        assert (heads.num_heads, heads.num_blocks) == (3, 1)
        kernel = heads.params["head_2"]["block_0"]["kernel"]
        np.testing.assert_array_equal(kernel, arrays["2.0.linear.weight"].T)
        head = heads.params["head_1"]["head"]
        np.testing.assert_array_equal(head, arrays["1.1.weight"])
    del arrays["1.0.linear.bias"]
    save(tmp_path / "alone", **arrays)
    with pytest.raises(ValueError, match="head 1 lacks bias at depth 0"):
        drafters.medusa(tmp_path / "alone")
    save(tmp_path / "alone", other=np.zeros(3))
    with pytest.raises(ValueError, match="no Medusa heads"):
        drafters.medusa(tmp_path / "alone")


@pytest.mark.parametrize(
    "version, prefix", [(1, "layers.0."), (3, "midlayer."), (3, "layers.0.")]
)
def test_eagle_drafters(tmp_path, version, prefix):
    rng = np.random.default_rng(0)
    wide = 8 if version == 3 else 4
    shapes = {
        prefix + "self_attn.q_proj.weight": (4, wide),
        prefix + "mlp.down_proj.weight": (4, 6),
        prefix + "post_attention_layernorm.weight": (4,),
        "fc.weight": (4, 12 if version == 3 else 8),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    if version == 3:
        arrays["d2t"] = np.arange(5)
        arrays["t2d"] = np.arange(7) < 5
        arrays[prefix + "hidden_norm.weight"] = np.ones(4)
    save(tmp_path, **arrays)
    drafter = drafters.eagle(tmp_path)
    assert drafter.version == version and ("d2t" in drafter.params) == (version == 3)
    kernel = drafter.params["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.shape == (wide, 4)
    save(tmp_path, surprise=np.zeros(2), **arrays)
    with pytest.raises(ValueError, match="missing none; unexpected surprise"):
        drafters.eagle(tmp_path)


def tokenizer_folder(folder, template):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    words = {"<unk>": 0, "hello": 1, "world": 2, "user": 3, "assistant": 4, ":": 5}
    backend = Tokenizer(kinds.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|end|>", "<|mask|>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "mask_token": {"content": "<|mask|>"}}
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_tokenizer_and_chat_template(broken):
    template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
    )
    tokenizer_folder(broken.folder, template)
    _, _, tokenizer = checkpoints.load(broken.folder)
    assert tokenizer.encode("hello world") == [1, 2]
    assert tokenizer.decode([1, 2, 6]) == "hello world"
    assert (tokenizer.eos_id, tokenizer.mask_id) == (6, 7)
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.chat(chat) == [3, 5, 1, 6, 4, 5]
    # What only looks like a special token is text.
    assert tokenizer.encode("hello <|oops|> <|end|>") == [1, 0, 0, 0, 6]
    for attack in ("{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        tokenizer_folder(broken.folder, attack)
        with pytest.raises(ValueError, match="the chat template refused"):
            checkpoints.load(broken.folder)[2].chat(chat)
    tokenizer_folder(broken.folder, None)
    with pytest.raises(ValueError, match="no chat template"):
        checkpoints.load(broken.folder)[2].chat(chat)
    (broken.folder / "tokenizer.json").write_text("{")
    check_refusal(broken.folder, r"tokenizer\.json is damaged")
    tokenizer_folder(broken.folder, None)
    (broken.folder / "tokenizer_config.json").write_text("[]")
    check_refusal(broken.folder, r"tokenizer_config\.json is damaged: it holds no obj")


# Settings that another case has too.
FURTHER = {"llada_tiny": ("case1", "case2", "case7", "case8"),
           "dream_tiny": ("case1", "case2")}  # fmt: skip


def recorded_cases():
    for name, further in FURTHER.items():
        for case in json.loads((GOLDEN / name / "cases.json").read_text()):
            marks = pytest.mark.thorough if case["name"] in further else ()
            yield pytest.param(name, case, id=f"{name}-{case['name']}", marks=marks)


@pytest.mark.parametrize("name, case", list(recorded_cases()))
def test_recorded_generations_through_the_command_line(name, case):
    arrays = expected(name)
    settings = dict(case["settings"])
    size = settings.pop("gen_length")
    method = case.get("kind", "dream")
    if method in ("fast", "prefix", "dual"):
        settings["cache"] = "none" if method == "fast" else method
        method = "fast_dllm"
    (prompt,) = arrays[f"{case['name']}_prompt"].tolist()
    want = arrays[f"{case['name']}_output"][0, len(prompt) :].tolist()
    arguments = ["--method", method, "--max-new-tokens", size]
    for knob, value in settings.items():
        arguments += ["--set", f"{knob}={value}"]
    # The authors' code decodes what lies behind EOS too. Company changes nothing.
    rows = [prompt, prompt[:4], [*prompt, 3, 5]]
    made = generated(name, rows, *arguments, "--keep-eos-tail")
    assert made["tokens"][0] == want
    if "nfe" in case:
        guided = 2 if settings.get("cfg_scale") else 1
        assert made["stats"]["calls"][0] <= case["nfe"] * guided
    (eos,) = checkpoints.load(GOLDEN / name)[0].eos_ids
    if eos in want:
        cut = generated(name, [prompt], *arguments)
        assert cut["tokens"] == [want[: want.index(eos)]]
        assert cut["stopped_by"] == ["eos"]


def generated(name, rows, *arguments):
    """What `pdecode generate --json` prints for rows of ids."""
    code, out, err = command(
        "generate", "--model", GOLDEN / name, "--prompt-ids", json.dumps(rows),
        *arguments, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    return json.loads(out)


def test_dream_takes_the_nucleus_of_the_whole_law():
    # Cut to the best two, 0.4 and 0.3 are 0.57 and 0.43: the first alone passes 0.5.
    logits = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))
    kept = {
        first: filter_logits(logits, Sampling(1.0, 2, 0.5, is_top_p_first=first))
        > BANNED
        for first in (False, True)
    }
    assert kept[False].tolist() == [True, False, False, False]
    assert kept[True].tolist() == [True, True, False, False]


def test_the_installed_command_gives_what_was_recorded(tmp_path):
    prompt, want = (expected("llada_tiny")[f"case2_{x}"] for x in ("prompt", "output"))
    done = subprocess.run(
        [
            sys.executable, "-m", "pdecode", "generate", "--json", "--keep-eos-tail",
            "--model", GOLDEN / "llada_tiny", "--method", "llada",
            "--set", "steps=16", "--set", "block_length=8", "--max-new-tokens", "32",
            "--prompt-ids", json.dumps(prompt.tolist()),
        ],
        capture_output=True, text=True, check=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert json.loads(done.stdout)["tokens"] == want[:, prompt.shape[1] :].tolist()
