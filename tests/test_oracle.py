"""Tiny random checkpoints saved by transformers: the same logits and greedy tokens.

Needs the extra `oracle`; skipped without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pdecode import decode, models, prompts  # noqa: E402
from pdecode.contracts import Query, Visibility  # noqa: E402
from pdecode.kernels import vocab_head  # noqa: E402
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


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(their model, our model, our params) of one architecture."""
    kind, settings = CASES[request.param]
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
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours, params, _ = models.load(folder)
    return theirs, ours, params


def ragged_rows():
    rng = np.random.default_rng(0)
    return [rng.integers(2, 90, length) for length in (5, 17, 11)]


def test_logits_on_a_ragged_batch(pair):
    theirs, ours, params = pair
    rows = ragged_rows()
    prompt = prompts.from_rows(rows, max_new=1)
    batch, width = prompt.tokens.shape
    place = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    slots = jnp.where(place < prompt.lengths[:, None], place, 10**6)
    query = Query(
        prompt.tokens, place, slots, Visibility(jnp.zeros_like(place), place + 1)
    )
    cache = ours.init_cache(prompt, width + 3)
    hidden = jax.jit(ours.apply)(params, query, cache)[0].hidden
    logits = vocab_head.logits(ours.head(params), hidden)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            want = theirs(torch.tensor(ids)[None]).logits[0].numpy()
        np.testing.assert_allclose(logits[row, : len(ids)], want, atol=1e-4)


def test_greedy_tokens(pair):
    theirs, ours, params = pair
    rows = ragged_rows()
    prompt = prompts.from_rows(rows, max_new=64)
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
