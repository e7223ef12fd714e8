"""Checkpoints from disk: the authors' numbers, and clear words for broken folders."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import decode, models, prompts
from pdecode.contracts import Query, Visibility
from pdecode.kernels import vocab_head
from pdecode.methods.masked import diffusion_gemma as method
from pdecode.models import diffusion_gemma, loading

GOLDEN = pathlib.Path(__file__).parent / "golden"
TOLERANCE = 2e-4


def expected(name):
    return dict(np.load(GOLDEN / name / "expected.npz"))


def full_call(model, params, tokens, stop=None):
    """Logits [B, L, V] of one call over whole rows, all lanes seeing all."""
    batch, length = tokens.shape
    rows = prompts.from_rows(list(np.asarray(tokens)), max_new=1)
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    visible = Visibility(jnp.zeros_like(place), jnp.full_like(place, length))
    query = Query(jnp.asarray(tokens), place, place, visible)
    cache = model.init_cache(rows, length + 1)
    hidden = jax.jit(model.apply)(params, query, cache)[0].hidden
    return vocab_head.logits(model.head(params), hidden)


def test_llada_logits():
    model, params, tokenizer = models.load(GOLDEN / "llada_tiny")
    want = expected("llada_tiny")
    got = full_call(model, params, want["logits_tokens"])
    np.testing.assert_allclose(got, want["logits"], atol=TOLERANCE)
    facts = (model.mask_id, model.eos_ids, model.noise, model.attention)
    assert facts == (126, (125,), "absorbing", "bidirectional")
    assert tokenizer.decode([3, 4]) == "3 4"
    with pytest.raises(ValueError, match=r"no tokenizer\.json.*token ids"):
        tokenizer.encode("hello")


def test_dream_logits_are_those_of_the_slot_to_the_left():
    model, params, _ = models.load(GOLDEN / "dream_tiny")
    want = expected("dream_tiny")
    got = full_call(model, params, want["logits_tokens"])
    raw = want["logits"]
    shifted = np.concatenate([raw[:, :1], raw[:, :-1]], axis=1)
    np.testing.assert_allclose(got, shifted, atol=TOLERANCE)


class Gemma:
    """The tiny DiffusionGemma with all taps."""

    def __init__(self):
        checkpoint = loading.open_folder(GOLDEN / "diffusion_gemma_tiny")
        taps = ("embed", "layer_0", "layer_1", "layer_2")
        config = checkpoint.config.__class__(
            **{**vars(checkpoint.config), "taps": taps}
        )
        self.params = loading.read_params(checkpoint)
        self.model = diffusion_gemma.make_model(config)
        self.encode = jax.jit(self.model.encode)
        self.apply = jax.jit(self.model.apply)

    def logits(self, hidden):
        return vocab_head.logits(self.model.head(self.params), hidden)


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
    prompt = prompts.from_rows(rows, max_new=1)
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


@pytest.mark.parametrize("number", [0, 1, 2])
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
        max_new=settings["max_new_tokens"],
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
