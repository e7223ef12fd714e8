"""Folders of block models and DiTs: the published logits, tokens and calls.

The oracle is `published`, numpy readings of the papers' networks and loops.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from jax.sharding import AxisType
from published import BD3LM, FAST_DLLM, LLADA2, MDLM

from pdecode import checkpoints, decode, methods, prompts
from pdecode.checkpoints import convert, loading, tensors
from pdecode.contracts import Query, Visibility
from pdecode.kernels.head import dense

RAW = {
    "fast_dllm": FAST_DLLM,
    "llada2": LLADA2,
    "mdlm": MDLM,
    "bd3lm": BD3LM,
    "plain_bd3lm": dict(BD3LM, adaln=False),
}
WORDS = np.random.default_rng(0).integers(0, 22, (3, 20)).tolist()


class Made:
    """A folder, what was read from it, and the oracle's network."""

    def __init__(self, name, root):
        self.raw = RAW[name]
        # A seed whose greedy texts are no run of one token.
        self.values = published.weights(self.raw, 5 if name == "llada2" else 0)
        self.folder = published.save(root / name, self.raw, self.values)
        self.model, self.params, _ = checkpoints.load(self.folder)
        self.net = published.network(self.raw, self.values)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, kept = tmp_path_factory.mktemp("published"), {}

    def of(name):
        if name not in kept:
            kept[name] = Made(name, root)
        return kept[name]

    return of


def logits_of(model, params, tokens):
    """Logits [L, V] of one call over a row."""
    tokens = jnp.asarray(tokens, jnp.int32)[None]
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    size = model.block_len
    stop = (place // size + 1) * size if size else place * 0 + tokens.shape[1]
    visible = Visibility(place * 0, jnp.minimum(stop, tokens.shape[1]))
    rows = prompts.from_rows(tokens.tolist(), max_new_tokens=1)
    cache = model.init_cache(rows, tokens.shape[1])
    query = Query(tokens, place, place, visible)
    hidden = jax.jit(model.apply)(params, query, cache)[0].hidden
    return np.asarray(dense.logits(model.head(params), hidden))[0]


@pytest.mark.parametrize("name", RAW)
def test_logits(made, name):
    it = made(name)
    want = it.net(WORDS[0])
    if it.model.is_shifted:
        want = np.concatenate([want[:1], want[:-1]])
    got = logits_of(it.model, it.params, WORDS[0])
    np.testing.assert_allclose(got, want, atol=2e-4)
    facts = (it.model.mask_id, it.model.predicts, it.model.is_shifted)
    assert facts == (23, "masked", name == "fast_dllm")
    assert it.model.block_len == it.net.size


# One field other than in the folders above: the network that the oracle makes of it.
FIELDS = [
    ("fast_dllm", dict(rope_theta=90.0)),
    ("fast_dllm", dict(rms_norm_eps=0.1)),
    ("fast_dllm", dict(tie_word_embeddings=True)),
    ("fast_dllm", dict(hidden_act="gelu_pytorch_tanh")),
    ("fast_dllm", dict(bd_size=4)),
    ("llada2", dict(rope_theta=90.0)),
    ("llada2", dict(rms_norm_eps=0.1)),
    ("llada2", dict(partial_rotary_factor=1.0)),
    ("llada2", dict(use_qk_norm=False)),
    ("llada2", dict(use_bias=True)),
    ("llada2", dict(use_qkv_bias=False)),
    ("llada2", dict(first_k_dense_replace=0)),
    ("llada2", dict(num_shared_experts=None)),
    ("llada2", dict(num_experts_per_tok=1)),
    ("llada2", dict(n_group=2, topk_group=1)),
    ("llada2", dict(n_group=1, topk_group=1)),
    ("llada2", dict(routed_scaling_factor=0.5)),
    ("llada2", dict(tie_word_embeddings=True)),
    ("llada2", dict(hidden_act="gelu_pytorch_tanh")),
    ("bd3lm", dict(cross_attn=False)),
    ("bd3lm", dict(block_size=5)),
    ("bd3lm", dict(n_heads=2)),
]


@pytest.mark.thorough
@pytest.mark.parametrize("name, changes", FIELDS)
def test_a_field_means_what_the_published_code_makes_of_it(name, changes, tmp_path):
    raw = RAW[name] | changes
    values = published.weights(raw)
    model, params, _ = checkpoints.load(published.save(tmp_path, raw, values))
    net = published.network(raw, values)
    want = net(WORDS[0])
    plain = published.network(RAW[name], published.weights(RAW[name]))(WORDS[0])
    assert np.abs(want - plain).max() > 0.05
    if model.is_shifted:
        want = np.concatenate([want[:1], want[:-1]])
    got = logits_of(model, params, WORDS[0])
    np.testing.assert_allclose(got, want, atol=2e-4)


# What a wrong reading would leave out, by the tensors it would not miss.
WITHOUT = {
    "fast_dllm": ("q_proj.bias",),
    "llada2": ("expert_bias",),
    "mdlm": ("sigma_map.mlp.0.bias",),
    "plain_bd3lm": ("norm1.weight",),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_every_tensor_counts(made, name):
    """Negative control: the oracle with one tensor left out tells it."""
    it = made(name)
    values = {
        key: value * 0 if key.endswith(WITHOUT[name]) else value
        for key, value in it.values.items()
    }
    other = published.network(it.raw, values)(WORDS[0])
    assert np.abs(other - it.net(WORDS[0])).max() > 0.1


@pytest.mark.parametrize(
    "name",
    [
        *("fast_dllm", "llada2", "bd3lm"),
        *(pytest.param(n, marks=pytest.mark.thorough) for n in ("mdlm", "plain_bd3lm")),
    ],
)
def test_sharded_loading_and_a_round_trip(made, name, tmp_path):
    it = made(name)
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    axes = ("fsdp", "tensor", "expert")
    mesh = jax.sharding.Mesh(devices, axes, axis_types=(AxisType.Auto,) * 3)
    sharded = checkpoints.load(it.folder, mesh=mesh)[1]
    jax.tree.map(np.testing.assert_array_equal, it.params, sharded)
    query = sharded["layer_0"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    convert.convert(it.folder, tmp_path / "orbax")
    convert.convert(tmp_path / "orbax", tmp_path / "back")
    back = tensors.index(tmp_path / "back")
    assert set(back) == set(it.values)
    for key, value in it.values.items():
        np.testing.assert_array_equal(tensors.read(back[key]), value)


# Decode loops. Prompts in a block, of a whole one, of more.

LENGTHS = {"short": 5, "whole": 8, "long": 13}


def run(it, method, prompt, new, **settings):
    out, stats = decode.run(
        method, it.model, it.params, prompts.from_rows(prompt, max_new_tokens=new),
        jax.random.key(0), max_new_tokens=int(np.max(new)), **settings,
    )  # fmt: skip
    texts = [
        out.tokens[b, : len(row) + int(out.lengths[b])].tolist()
        for b, row in enumerate(prompt)
    ]
    return texts, stats


def told(text, prompt, new, eos=None):
    """Of a reference's text what counts."""
    made = text[len(prompt) : len(prompt) + new]
    return prompt + (made[: made.index(eos)] if eos in made else made)


@pytest.mark.parametrize("use_block_cache", [False, True])
def test_fast_dllm_v2(made, use_block_cache):
    it = made("fast_dllm")
    rows = [WORDS[i][:n] for i, n in enumerate(LENGTHS.values())]
    texts, stats = run(
        it, methods.fast_dllm_v2, rows, 24, small_block_size=2,
        use_block_cache=use_block_cache, knobs={"threshold": 0.5},
    )  # fmt: skip
    for b, row in enumerate(rows):
        # The last block is whole, and a row is done as soon as its own part of it is.
        want, calls = published.fast_dllm_v2(
            it.net, row, 24, 2, 0.5, use_block_cache=use_block_cache
        )
        assert texts[b] == told(want, row, 24)
        assert stats.num_calls[b] == calls < 24
    other = [
        published.fast_dllm_v2(it.net, row, 24, 2, 0.5, not use_block_cache)[0]
        for row in rows
    ]
    assert any(text != told(o, row, 24) for text, o, row in zip(texts, other, rows))


def test_fast_dllm_v2_ends_with_its_end_token(made):
    it = made("fast_dllm")
    row = WORDS[2][:13]
    whole = published.fast_dllm_v2(it.net, row, 24, 4, 0.5)[0]
    eos = whole[24]
    model = it.model._replace(eos_ids=(eos,))
    out, stats = decode.run(
        methods.fast_dllm_v2, model, it.params,
        prompts.from_rows([row], max_new_tokens=24),
        jax.random.key(0), max_new_tokens=24, small_block_size=4,
        knobs={"threshold": 0.5},
    )  # fmt: skip
    want, calls = published.fast_dllm_v2(it.net, row, 24, 4, 0.5, eos=eos)
    assert out.tokens[0, : 13 + int(out.lengths[0])].tolist() == told(
        want, row, 24, eos
    )
    assert int(stats.num_calls[0]) == calls


@pytest.mark.parametrize("editing", [None, 0.4])
def test_llada2(made, editing):
    it = made("llada2")
    rows = [WORDS[i][:n] for i, n in enumerate(LENGTHS.values())]
    new = [19, 16, 19]  # to the end of a block
    if editing is None:
        texts, stats = run(
            it, methods.fast_dllm, rows, new, cache="dual", knobs={"threshold": 0.5}
        )
    else:
        texts, stats = run(
            it, methods.llada2, rows, new, max_post_steps=3,
            knobs={"threshold": 0.5, "editing_threshold": editing},
        )  # fmt: skip
    for b, (row, count) in enumerate(zip(rows, new)):
        want, calls = published.llada2(it.net, row, count, 0.5, editing, 3)
        assert texts[b] == told(want, row, count)
        assert stats.num_calls[b] == calls < count
        assert (stats.num_revoked[b] > 0) == (editing is not None)


@pytest.mark.parametrize("name, method", [("mdlm", "mdlm"), ("bd3lm", "bd3lm")])
def test_every_token_of_a_dit_is_the_likeliest_where_it_was_filled(made, name, method):
    """Its order is drawn; the canvases of all steps are given to the oracle."""
    it = made(name)
    row, new = WORDS[1][:6], 10
    settings = {"steps": 6} if method == "mdlm" else {}
    made_of = getattr(methods, method)(
        it.model, max_new_tokens=new, temperature=0.0, **settings
    )
    traced = decode.with_trace(
        made_of, lambda state, info: (state.tokens, state.masked), 16
    )

    @jax.jit
    def go(params, prompt):
        state, stats = decode.decode_state(traced, params, prompt, jax.random.key(1))
        return decode.finish(traced, state), stats, state.saved

    prompt = prompts.from_rows([row], max_new_tokens=new)
    out, stats, (tokens, masked) = jax.tree.map(np.asarray, go(it.params, prompt))
    reach = 16
    before = np.array(row + [23] * (reach - len(row)))
    for turn in range(int(stats.num_calls[0])):
        logits = it.net(before)[:, :23]
        canvas = tokens[turn, 0, :reach]
        filled = (before == 23) & ~masked[turn, 0, :reach]
        assert (canvas[filled] == logits.argmax(1)[filled]).all()
        assert method == "mdlm" or filled.sum() == 1
        before = np.where(masked[turn, 0, :reach], 23, canvas)
    assert (before != 23).all()
    assert out.tokens[0, :reach].tolist() == before.tolist()


REFUSED = [
    ("llada2", {"norm_head": True}, "norm_head=True"),
    ("llada2", {"norm_topk_prob": False}, "norm_topk_prob=False"),
    ("llada2", {"score_function": "softmax"}, "score_function='softmax'"),
    ("llada2", {"use_sliding_window": True}, "use_sliding_window=True"),
    ("llada2", {"partial_rotary_factor": 0.4}, "partial_rotary_factor=0.4"),
    ("llada2", {"rotary_dim": 8}, "rotary_dim=8"),
    ("llada2", {"n_group": 3}, "num_groups=3"),
    ("llada2", {"topk_group": 1}, "top_k=3 is more than the 2 experts"),
    ("llada2", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1"),
    ("llada2", {"intermediate_size": None}, "no intermediate_size"),
    ("mdlm", {"time_conditioning": True}, "time_conditioning=True"),
    ("bd3lm", {"causal": True}, "causal=True"),
    ("fast_dllm", {"bd_size": 0}, "bd_size=0"),
    ("fast_dllm", {"mask_token_id": None, "vocab_size": 24}, "lacks mask_token_id"),
]


@pytest.mark.parametrize("name, changes, message", REFUSED)
def test_what_changes_logits_and_is_not_done_is_refused(
    name, changes, message, tmp_path
):
    published.save(tmp_path, RAW[name] | changes, {"a": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loading.read_config(tmp_path)


@pytest.mark.parametrize(
    "name, ids",
    [("fast_dllm", (151_665, ())), ("llada2", (156_895, (156_892,)))],
)
def test_ids_of_the_published_code_are_defaults(name, ids, tmp_path):
    raw = {k: v for k, v in RAW[name].items() if k != "mask_token_id"}
    raw |= {"vocab_size": 157_184}
    published.save(tmp_path, raw, {"a": np.zeros(1, np.float32)})
    config = loading.read_config(tmp_path)[1]
    assert (config.mask_id, config.eos_ids) == ids


def test_published_configurations_draw_no_warning(tmp_path):
    more = {
        "fast_dllm": dict(conplemenrary_mask=True, use_sliding_window=False),
        "llada2": dict(use_qk_norm=True, router_dtype="fp32", output_dropout=0.0),
        "bd3lm": dict(attn_backend="sdpa", var_min=True, sampling_eps_max=0.9),
    }
    for name, fields in more.items():
        published.save(tmp_path, RAW[name] | fields, {"a": np.zeros(1, np.float32)})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loading.read_config(tmp_path)
