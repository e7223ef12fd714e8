"""Statistics of the vocabulary head: tiles and shards against float64 in numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pdecode import rng, sharding
from pdecode import sampling as laws
from pdecode.contracts import Head, Sampling
from pdecode.kernels.head import api as vocab_head
from pdecode.kernels.head import tiles

ALL = (
    *("token", "log_prob", "sampled_log_prob", "max_log_prob", "of_log_prob"),
    *("entropy", "margin", "sampled_entropy", "sampled_margin", "top:5"),
)


@pytest.fixture
def tiled(monkeypatch):
    """Many small tiles, whatever the size of the problem."""
    monkeypatch.setattr(vocab_head, "DENSE_LOGITS", 0)
    monkeypatch.setattr(tiles, "TILE_LENS", (64, 64))


def case(seed, *, vocab, batch=2, queries=3, width=16, dtype=np.float32):
    """Head weights, hidden states, noise places and tokens to ask about."""
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((vocab, width)).astype(dtype)
    hidden = draw.standard_normal((batch, queries, width)).astype(dtype)
    rows = rng.row_keys(jax.random.key(seed), jnp.arange(batch))
    places = jnp.tile(jnp.arange(queries, dtype=jnp.int32), (batch, 1))
    of = jnp.asarray(draw.integers(0, vocab, (batch, queries)), jnp.int32)
    return weight, hidden, rng.noise(rows, rng.TARGET, places), of


def expected(head, hidden, sampling, keys, of, num_top):
    """The same leaves in float64, from the whole law at once."""
    z = np.asarray(hidden, np.float64) @ np.asarray(head.weight, np.float64).T
    z = z * float(head.scale) + (0 if head.bias is None else np.asarray(head.bias))
    if head.soft_cap is not None:
        z = head.soft_cap * np.tanh(z / head.soft_cap)
    z[..., list(sampling.banned)] = -np.inf

    def log_law(z):
        shifted = z - z.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def take(law, ids):
        return np.take_along_axis(law, np.asarray(ids)[..., None], -1)[..., 0]

    def statistics(law):
        with np.errstate(invalid="ignore"):
            terms = np.where(np.isfinite(law), np.exp(law) * law, 0)
        top = np.sort(np.exp(law), -1)[..., ::-1]
        return -terms.sum(-1), top[..., 0] - top[..., 1]

    temperature = float(sampling.temperature)
    raw, cool = log_law(z), log_law(z / (temperature or 1.0))
    drawn = z.copy()
    drawn[..., list(sampling.undrawn)] = -np.inf
    if keys is not None:
        drawn += temperature * np.asarray(rng.gumbel(keys, z.shape[-1]), np.float64)
    token = drawn.argmax(-1)
    top_ids = np.argsort(-raw, -1, kind="stable")[..., :num_top]
    entropy, margin = statistics(raw)
    sampled_entropy, sampled_margin = statistics(cool)
    return {
        "token": token,
        "log_prob": take(raw, token),
        "sampled_log_prob": take(cool, token),
        "max_log_prob": raw.max(-1),
        "of_log_prob": take(raw, of),
        "entropy": entropy,
        "margin": margin,
        "sampled_entropy": sampled_entropy,
        "sampled_margin": sampled_margin,
        "top_ids": top_ids,
        "top_log_probs": np.take_along_axis(raw, top_ids, -1),
    }


def ask(head, hidden, keys, of, sampling, wants=ALL):
    """`statistics` compiled with everything traced that a decode traces."""

    def statistics(arrays, hidden, keys, of, temperature):
        traced = Head(*arrays, soft_cap=head.soft_cap)
        law = sampling._replace(temperature=temperature)
        return vocab_head.statistics(traced, hidden, wants, law, keys, of=of)

    arrays = (head.weight, head.bias, head.scale)
    return jax.jit(statistics)(arrays, hidden, keys, of, sampling.temperature)


def check(found, want, atol=1e-5):
    for name, value in want.items():
        leaf = np.asarray(getattr(found, name))
        if leaf.dtype == np.int32:
            np.testing.assert_array_equal(leaf, value, err_msg=name)
        else:
            np.testing.assert_allclose(leaf, value, atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    "vocab, temperature, head, banned, undrawn",
    [
        (256, 0.0, {}, (), ()),
        (203, 0.7, {"bias": True}, (0, 202), (7,)),
        (513, 1.0, {"soft_cap": 5.0, "scale": 0.3}, (64,), ()),
        (70, 1.3, {"bias": True, "soft_cap": 2.0}, tuple(range(64)), (69,)),
        (40, 1.0, {}, (3,), ()),  # less than one tile
    ],
)
def test_tiles_equal_float64(tiled, vocab, temperature, head, banned, undrawn):
    weight, hidden, keys, of = case(vocab, vocab=vocab)
    of = jnp.where(jnp.isin(of, jnp.asarray(banned, jnp.int32)), vocab - 3, of)
    bias = np.linspace(-1, 1, vocab, dtype=np.float32) if head.get("bias") else None
    head = Head(weight, bias, head.get("scale", 1.0), head.get("soft_cap"))
    sampling = Sampling(temperature, banned=banned, undrawn=undrawn)
    found = ask(head, hidden, keys, of, sampling)
    check(found, expected(head, hidden, sampling, keys, of, 5))


@pytest.mark.parametrize("wants", [("token",), ("sampled_margin", "top:2")])
def test_one_leaf_alone_and_as_the_dense_path_has_it(tiled, monkeypatch, wants):
    weight, hidden, keys, of = case(1, vocab=150)
    sampling = Sampling(0.9, banned=(4,))
    head = Head(weight, np.linspace(-1, 1, 150, dtype=np.float32), 0.7, 9.0)
    found = ask(head, hidden, keys, of, sampling, wants)
    monkeypatch.setattr(vocab_head, "DENSE_LOGITS", 1 << 40)
    dense = ask(head, hidden, keys, of, sampling, wants)
    for want in wants:
        for leaf in ("top_ids", "top_log_probs") if want == "top:2" else (want,):
            one, other = getattr(found, leaf), getattr(dense, leaf)
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_ties_go_to_the_lowest_id(tiled):
    weight = np.zeros((200, 4), np.float32)
    weight[[70, 150, 199]] = 1.0
    hidden = np.ones((1, 1, 4), np.float32)
    wants = ("token", "margin", "top:4")
    found = ask(Head(weight), hidden, None, None, Sampling(), wants)
    assert found.token.item() == 70 and found.margin.item() == 0
    np.testing.assert_array_equal(found.top_ids[0, 0], [70, 150, 199, 0])


def test_float64_stays_float64(tiled):
    with jax.enable_x64(True):
        weight, hidden, keys, of = case(2, vocab=130, dtype=np.float64)
        sampling = Sampling(0.8)
        found = ask(Head(weight), hidden, keys, of, sampling)
        assert found.entropy.dtype == np.float64
        want = expected(Head(weight), hidden, sampling, keys, of, 5)
        check(found, want, atol=1e-12)


def test_bfloat16_weights_are_summed_in_float32(tiled):
    weight, hidden, keys, of = case(3, vocab=130)
    weight, hidden = (jnp.asarray(x, jnp.bfloat16) for x in (weight, hidden))
    sampling = Sampling(1.0)
    found = ask(Head(weight), hidden, keys, of, sampling)
    assert found.entropy.dtype == np.float32
    want = expected(Head(weight), hidden, sampling, keys, of, 5)
    check(found, want, atol=2e-5)


def test_large_problems_take_tiles_and_filters_do_not(monkeypatch):
    weight, hidden, _, _ = case(4, vocab=128)
    calls = []

    def spy(*args):
        calls.append(args)
        return vocab_head.Prediction()

    monkeypatch.setattr(tiles, "statistics", spy)

    def count(wants, **filters):
        sampling = Sampling(1.0, **filters)
        vocab_head.statistics(Head(weight), hidden, wants, sampling)
        return len(calls)

    assert count(("token",)) == 0
    monkeypatch.setattr(vocab_head, "DENSE_LOGITS", 6 * 128 - 1)
    assert count(("token",)) == 1
    for wants in (("token", "logits"), ("probs",)):
        assert count(wants) == 1
    for knob in ("top_k", "top_p", "min_p"):
        assert count(("token",), **{knob: 0.5}) == 1


def test_peak_memory_is_a_few_percent_of_the_logits():
    batch, queries, vocab, width = 8, 1024, 126464, 64
    wants = ("token", "log_prob", "entropy", "margin", "top:8", "max_log_prob")

    def f(weight, hidden, keys, temperature):
        sampling = Sampling(temperature, banned=(126336,))
        return vocab_head.statistics(Head(weight), hidden, wants, sampling, keys)

    shapes = (
        jax.ShapeDtypeStruct((vocab, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((batch, queries, width), jnp.bfloat16),
        jax.eval_shape(
            lambda: jax.random.split(jax.random.key(0), batch * queries)
        ).update(shape=(batch, queries)),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    compiled = jax.jit(f).lower(*shapes).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    logits = 4 * batch * queries * vocab
    # It holds at least one tile of every row, so a number is being measured.
    tile = 4 * batch * queries * tiles.TILE_LENS[0]
    assert tile <= temporary < 0.05 * logits, temporary / logits


def test_tiles_of_any_size_say_the_same():
    # What a GPU gets is the other platforms' loop with larger tiles.
    weight, hidden, keys, of = case(7, vocab=1000)
    facts = tiles.Wanted(
        frozenset({"token", "log_prob", "entropy", "margin", "of_log_prob"}), 4,
        (3,), (), True, None, None,
    )  # fmt: skip
    rows = tiles.Rows(
        hidden.reshape(-1, hidden.shape[-1]), keys.reshape(-1), of.reshape(-1),
        jnp.float32(0.7),
    )  # fmt: skip
    head = Head(jnp.asarray(weight), None, jnp.float32(1.0), None)
    walk = jax.jit(
        lambda rows, head, size: tiles._walk(facts, rows, head, 0, size=size),
        static_argnums=2,
    )
    want = walk(rows, head, 64)
    for size in (416, 1000):
        got = walk(rows, head, size)
        assert jnp.array_equal(got.drawn.token, want.drawn.token)
        assert jnp.array_equal(got.leaders.ids, want.leaders.ids)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5), got, want)
    assert tiles._gpu_tile_len(6, 1000) == 1000
    assert tiles._gpu_tile_len(3072, 126464) == 21824  # whole tiles of noise


def collectives(hlo: str) -> list[tuple[str, int]]:
    """Name and number of elements of every collective of a compiled program."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = []
    for line in hlo.splitlines():
        match = re.search(rf" = (.*?) ({names})(-start)?\(", line)
        if match:
            shapes = re.findall(r"[a-z]+\d*\[([\d,]*)\]", match[1])
            sizes = [np.prod([int(n) for n in s.split(",") if n]) for s in shapes]
            found.append((match[2], int(max(sizes))))
    return found


@pytest.mark.parametrize(
    "axes, vocab",
    [
        ({"tensor": 8}, 1000),  # a shard begins inside a tile of noise: 1000 / 8 = 125
        ({"data": 2, "tensor": 4}, 512),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 512),
    ],
)
def test_a_split_vocabulary_travels_as_a_few_numbers_a_row(monkeypatch, axes, vocab):
    monkeypatch.setattr(tiles, "TILE_LENS", (64, 64))
    mesh = sharding.make_mesh(**axes)
    weight, hidden, keys, of = case(5, vocab=vocab, batch=4, width=32)
    bias = np.linspace(-1, 1, vocab, dtype=np.float32)

    def statistics(params, bias, rows, temperature):
        head, sampling = Head(params["head"], bias), Sampling(temperature, banned=(5,))
        hidden, keys, of = rows
        return vocab_head.statistics(head, hidden, ALL, sampling, keys, of=of)

    arguments = (
        sharding.shard_params({"head": weight}, mesh),
        sharding.replicate(bias, mesh),
        sharding.shard_rows((hidden, keys, of), mesh),
        jnp.float32(0.9),
    )
    with jax.set_mesh(mesh):
        compiled = jax.jit(statistics).lower(*arguments).compile()
        found = compiled(*arguments)
    sampling = Sampling(0.9, banned=(5,))
    check(found, expected(Head(weight, bias), hidden, sampling, keys, of, 5))

    # At most K numbers a row from every shard; with "fsdp", tiles of whole width.
    sent = collectives(compiled.as_text())
    rows = 4 * 3 // (axes.get("data", 1) * axes.get("fsdp", 1))
    allowed = 64 * 32 if "fsdp" in axes else rows * 5 * axes["tensor"]
    assert sent and max(size for _, size in sent) <= allowed

    # Asking for the logits does send them, and the parser sees it.
    def dense(params, hidden):
        head = Head(params["head"])
        return vocab_head.statistics(head, hidden, ("logits",), Sampling()).logits

    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        program = jax.jit(dense, out_shardings=whole).lower(arguments[0], hidden)
    text = program.compile().as_text()
    assert max(size for _, size in collectives(text)) >= 12 * vocab


def test_maxima_are_those_of_a_sort():
    values = np.random.default_rng(0).integers(-3, 4, (50, 5)).astype(np.float32)
    values[:5] = laws.BANNED
    top, place = laws.largest(values)
    np.testing.assert_array_equal(top, values.max(-1))
    np.testing.assert_array_equal(place, values.argmax(-1))
    second = laws.second_largest(values)
    np.testing.assert_array_equal(second, np.sort(values, -1)[:, -2])
