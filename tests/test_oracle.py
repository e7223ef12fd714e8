"""Tiny random checkpoints saved by transformers: the same logits and greedy tokens.

Needs the extra `oracle`; skipped without it.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pdecode import checkpoints, decode, prompts  # noqa: E402
from pdecode.contracts import Query, Visibility  # noqa: E402
from pdecode.families import canvases  # noqa: E402
from pdecode.kernels.head import dense  # noqa: E402
from pdecode.methods.speculative.autoregressive import autoregressive  # noqa: E402

pytestmark = pytest.mark.oracle

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=95,
    pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10_000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16)
GEMMA = dict(head_dim=16, query_pre_attn_scalar=12, sliding_window=7)

# Name, configuration class, arguments.
CASES = {
    "llama": ("LlamaConfig", SIZES),
    "llama_tied_bias": (
        "LlamaConfig",
        SIZES
        | dict(
            tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=6
        ),
    ),
    "llama3": ("LlamaConfig", SIZES | dict(rope_parameters=LLAMA3)),
    "mistral": ("MistralConfig", SIZES | dict(sliding_window=6)),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES | dict(head_dim=12)),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        SIZES | MOE | dict(head_dim=8, norm_topk_prob=True, decoder_sparse_step=1),
    ),
    "gpt2": (
        "GPT2Config",
        dict(
            vocab_size=96,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=128,
            bos_token_id=1,
            eos_token_id=95,
        ),
    ),
    "gemma2": ("Gemma2Config", SIZES | GEMMA),
    "gemma3": ("Gemma3TextConfig", SIZES | GEMMA | dict(num_hidden_layers=7)),
}


def random_model(kind, settings):
    """A model of theirs, with weights that make its logits differ."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    theirs = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            # Their default makes near-uniform logits and unit norms: no test at all.
            noise = torch.randn(weight.shape)
            if weight.ndim == 1:
                weight.add_(0.3 * noise)
            else:
                spread = 1.0 if "embed" in name or "wte" in name else 1.5
                weight.copy_(noise * spread / weight.shape[-1] ** 0.5)
    return theirs


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(their model, our model, our params) of one architecture."""
    theirs = random_model(*CASES[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours, params, _ = checkpoints.load(folder)
    return theirs, ours, params


def ragged_rows():
    rng = np.random.default_rng(0)
    return [rng.integers(2, 90, length) for length in (5, 17, 11)]


def test_logits_on_a_ragged_batch(pair):
    theirs, ours, params = pair
    rows = ragged_rows()
    logits = our_logits(ours, params, rows, lambda place, lengths: place + 1)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            want = theirs(torch.tensor(ids)[None]).logits[0].numpy()
        np.testing.assert_allclose(logits[row, : len(ids)], want, atol=1e-4)


def our_logits(ours, params, rows, stop):
    """Of one call; `stop(place, lengths)` is the end of what each lane sees."""
    prompt = prompts.from_rows(rows, max_new_tokens=1)
    batch, width = prompt.tokens.shape
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    lengths = prompt.lengths[:, None]
    slots = jnp.where(place < lengths, place, 10**6)
    visible = Visibility(jnp.zeros_like(place), stop(place, lengths))
    cache = ours.init_cache(prompt, width + 3)
    query = Query(prompt.tokens, place, slots, visible)
    hidden = jax.jit(ours.apply)(params, query, cache)[0].hidden
    return dense.logits(ours.head(params), hidden)


# The code of these comes with their weights and not with transformers. Layer by layer
# they are models that it has, under another mask; what the configuration adds to theirs
# is in the last column.
MASK = dict(mask_token_id=94)
NOT_CAUSAL = {
    "sdar": (*CASES["qwen3"], dict(model_type="sdar", block_size=4, **MASK)),
    "sdar_moe": (
        *CASES["qwen3_moe"],
        dict(model_type="sdar_moe", block_size=3, **MASK),
    ),
    "llada_moe": (
        "Qwen3MoeConfig",
        SIZES | MOE | dict(head_dim=8, norm_topk_prob=False, attention_bias=True),
        dict(model_type="llada", num_experts=6, expert_intermediate_size=16, **MASK),
    ),
    "dream": (*CASES["qwen2"], dict(model_type="Dream", **MASK)),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_logits_of_models_that_see_ahead(name, tmp_path):
    kind, settings, published = NOT_CAUSAL[name]
    theirs = random_model(kind, settings)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | published))
    ours, params, _ = checkpoints.load(tmp_path)
    size = ours.block_len
    assert ours.predicts == "masked" and size == published.get("block_size")

    def stop(place, lengths):
        ahead = lengths if size is None else (place // size + 1) * size
        return jnp.minimum(jnp.broadcast_to(ahead, place.shape), lengths)

    rows = ragged_rows()
    logits = our_logits(ours, params, rows, stop)
    for row, ids in enumerate(rows):
        place = torch.arange(len(ids))
        ends = torch.full_like(place, len(ids))
        if size is not None:
            ends = torch.minimum(ends, (place // size + 1) * size)
        hidden = place[None] >= ends[:, None]
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo().min)
        with torch.no_grad():
            given = torch.tensor(ids)[None]
            want = theirs(given, attention_mask=mask[None, None]).logits[0].numpy()
        if name == "dream":
            want = np.concatenate([want[:1], want[:-1]])
        np.testing.assert_allclose(logits[row, : len(ids)], want, atol=1e-4)


def test_greedy_tokens(pair):
    theirs, ours, params = pair
    rows = ragged_rows()
    prompt = prompts.from_rows(rows, max_new_tokens=64)
    out, _ = decode.run(
        autoregressive, ours, params, prompt, jax.random.key(0), max_new_tokens=64
    )
    for row, ids in enumerate(rows):
        want = theirs.generate(
            torch.tensor(ids)[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        want = want[: want.index(95)] if 95 in want else want
        start, length = len(ids), int(out.lengths[row])
        assert out.tokens[row, start : start + length].tolist() == want


CANVAS, WINDOW, WORDS, STEPS = 8, 6, 70, 7
SETTINGS = dict(
    max_new_tokens=22,
    max_denoising_steps=STEPS,
    t_min=0.4,
    t_max=0.8,
    stability_threshold=1,
    confidence_threshold=0.3,
)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """(their DiffusionGemma, our model, our params)."""
    torch.manual_seed(1)
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=WORDS,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        global_head_dim=16,
        num_global_key_value_heads=1,
        sliding_window=WINDOW,
        num_experts=5,
        top_k_experts=2,
        moe_intermediate_size=12,
        max_position_embeddings=128,
    )
    vision = transformers.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=8,
    )
    config = transformers.DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=CANVAS,
        image_token_id=69,
        boi_token_id=68,
        eoi_token_id=67,
    )
    theirs = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for name, weight in theirs.model.decoder.named_parameters():
            noise = torch.randn(weight.shape)
            if weight.ndim > 1:
                weight.copy_(noise * (1.2 / weight.shape[-1] ** 0.5))
            elif name == "norm.weight":
                weight.copy_(3.5 + 0.3 * noise)
            elif "post_" in name:
                weight.copy_(0.4 + 0.1 * noise)
            else:
                weight.add_(0.3 * noise)
    folder = tmp_path_factory.mktemp("diffusion_gemma")
    theirs.save_pretrained(folder)
    ours, params, _ = checkpoints.load(folder)
    return theirs, ours, params


def gemma_rows():
    """Rows on both sides of the window."""
    return [np.random.default_rng(n).integers(3, 66, n) for n in (4, 11)]


def test_diffusion_gemma_encoder_and_denoiser(gemma):
    theirs, ours, params = gemma
    rows, rng = gemma_rows(), np.random.default_rng(5)
    canvas = rng.integers(0, WORDS, (2, CANVAS))
    beliefs = 2 * rng.normal(size=(2, CANVAS, WORDS)).astype(np.float32)
    prompt = prompts.from_rows(rows, max_new_tokens=CANVAS)
    width = prompt.tokens.shape[1]
    lengths = prompt.lengths[:, None]
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (2, width))
    slots = jnp.where(place < lengths, place, 10**6)
    causal = Visibility(jnp.zeros_like(place), place + 1)
    cache = ours.init_cache(prompt, width + CANVAS + 1)
    encoded, cache = jax.jit(ours.encode)(
        params, Query(prompt.tokens, place, slots, causal), cache
    )
    head = ours.head(params)
    lanes = lengths + jnp.arange(CANVAS, dtype=jnp.int32)[None]
    ends = jnp.broadcast_to(lengths, lanes.shape)
    among = jnp.ones((2, CANVAS, CANVAS), bool)
    query = Query(
        tokens=jnp.asarray(canvas, jnp.int32),
        positions=lanes,
        slots=jnp.full_like(lanes, 10**6),
        visible=Visibility(jnp.zeros_like(lanes), ends, None, among),
        extra=jax.nn.softmax(beliefs) @ head.weight,
        has_extra=jnp.ones(lanes.shape, bool),
    )
    apply = jax.jit(ours.apply)
    later = dense.logits(head, apply(params, query, cache)[0].hidden)
    none_yet = query._replace(has_extra=jnp.zeros(lanes.shape, bool))
    first = dense.logits(head, apply(params, none_yet, cache)[0].hidden)
    encoded = dense.logits(head, encoded.hidden)
    for row, ids in enumerate(rows):
        given = torch.tensor(ids)[None]
        inputs = dict(input_ids=given, decoder_input_ids=torch.tensor(canvas[[row]]))
        believed = torch.tensor(beliefs[[row]])
        with torch.no_grad():
            hidden = theirs.model.encoder(input_ids=given).last_hidden_state
            want = 30 * torch.tanh(theirs.lm_head(hidden) / 30)
            np.testing.assert_allclose(encoded[row, : len(ids)], want[0], atol=2e-4)
            want = theirs(**inputs).logits
            np.testing.assert_allclose(first[row], want[0], atol=2e-4)
            want = theirs(**inputs, self_conditioning_logits=believed).logits
            np.testing.assert_allclose(later[row], want[0], atol=2e-4)


@pytest.mark.parametrize("bound, eos", [(0.1, 3), (0.5, 5), (2.0, 7)])
def test_diffusion_gemma_generations_from_equal_draws(gemma, monkeypatch, bound, eos):
    theirs, ours, params = gemma
    rows = gemma_rows()
    width = max(map(len, rows))
    left = np.stack([np.pad(row, (width - len(row), 0)) for row in rows])
    mask = np.arange(width) >= width - np.array([[len(row)] for row in rows])
    rng = np.random.default_rng(0)
    count = -(-SETTINGS["max_new_tokens"] // CANVAS)
    begin = rng.integers(0, WORDS, (count, 2, CANVAS))
    fresh = rng.integers(0, WORDS, (count, STEPS, 2, CANVAS))
    drawn = rng.random((count, STEPS, 2, CANVAS), np.float32)

    # They draw a start canvas, then at every step its tokens and then fresh ones.
    turn = {"canvas": -1, "step": 0, "is_fresh": False}

    def multinomial(probs, num_samples):
        level = drawn[turn["canvas"], turn["step"]].reshape(-1, 1)
        turn["is_fresh"] = True
        below = torch.cumsum(probs, -1) <= torch.tensor(level)
        return below.sum(-1, keepdim=True).clamp(max=WORDS - 1)

    def randint(*, low, high, size, device):
        assert (low, high, size) == (0, WORDS, (2, CANVAS))
        if turn["is_fresh"]:
            turn["is_fresh"], turn["step"] = False, turn["step"] + 1
            return torch.tensor(fresh[turn["canvas"], turn["step"] - 1])
        turn["canvas"], turn["step"] = turn["canvas"] + 1, 0
        return torch.tensor(begin[turn["canvas"]])

    sampler = transformers.models.diffusion_gemma.generation_diffusion_gemma
    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        patch.setattr(torch, "randint", randint)
        made = theirs.generate(
            torch.tensor(left),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            eos_token_id=[eos],
            pad_token_id=0,
            sampler_config=sampler.EntropyBoundSamplerConfig(entropy_bound=bound),
            **SETTINGS,
        )

    def at(stack, canvas, step):
        return jnp.asarray(stack)[
            jnp.minimum(canvas, count - 1), jnp.maximum(step, 0), jnp.arange(2)
        ]

    def sample(keys, canvas, step, positions, log_probs):
        level = at(drawn, canvas, step)[..., None]
        below = jnp.cumsum(jnp.exp(log_probs), -1) <= level
        return jnp.minimum(below.sum(-1), WORDS - 1).astype(jnp.int32)

    def noise(keys, canvas, step, positions, vocab_size):
        first = at(begin[:, None], canvas, jnp.zeros_like(step))
        return jnp.where(step[:, None] < 0, first, at(fresh, canvas, step))

    decoder = canvases.canvases(
        ours._replace(eos_ids=(eos,)),
        canvases.Draws(sample, noise),
        entropy_bound=bound,
        **SETTINGS,
    )
    prompt = prompts.from_rows(rows, max_new_tokens=SETTINGS["max_new_tokens"])
    run = jax.jit(
        lambda params: decode.decode(decoder, params, prompt, jax.random.key(0))
    )
    out, stats = run(params)
    for row, ids in enumerate(rows):
        text = made.sequences[row, width:]
        calls = (text != 0).sum() / made.tokens_per_forward[row]
        text = text[: SETTINGS["max_new_tokens"]].tolist()
        want = text[: text.index(eos)] if eos in text else text
        start, length = len(ids), int(out.lengths[row])
        assert out.tokens[row, start : start + length].tolist() == want
        # Ours count the calls that encode a canvas for the next one too.
        encodes = -(-(length + (eos in text)) // CANVAS) - 1
        assert int(stats.num_calls[row]) == round(float(calls)) + encodes
