"""The benchmark of calls and whole decodes: its peaks, floors and what it leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoints import command

from pdecode.evals.bench import cases, hotpath, whole
from pdecode.hardware import peaks as machine

FOUND = machine.Peaks(bandwidth=1e12, flops=1e14, rewritten=9e11, read=1e12)


@pytest.mark.parametrize("program", [machine._rewritten, machine._read])
def test_every_turn_of_a_loop_goes_through_the_array(program):
    size = 5000
    block = jax.ShapeDtypeStruct((size,), jnp.float32)
    text = program.lower(block, jax.ShapeDtypeStruct((), jnp.int32)).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    assert entry.count(" while(") == 1
    # Outside of the loop nothing touches it: it goes in, and comes out.
    work = (" fusion(", " add(", " multiply(", " reduce(", " maximum(", " call(")
    lines = [line for line in entry.splitlines() if f"f32[{size}]" in line]
    assert lines and not [line for line in lines if any(name in line for name in work)]


def test_peaks_are_the_better_of_two_and_bound_every_rate():
    found = machine.peaks("float32", num_bytes=1 << 16, side=8)
    assert found.bandwidth == max(found.rewritten, found.read) > 0 < found.flops
    assert machine.share(5e11, 1e12, "a call") == 0.5
    with pytest.raises(ValueError, match=r"4,200 GB/s is over .* 4,086 GB/s"):
        machine.share(4.2e12, 4.086e12, "a call")
    # What fits in a cache says nothing of the memory.
    assert machine.of_memory(1e9, 1e-2, FOUND) == 0.1
    assert machine.of_memory(1e6, 1e-9, FOUND) is None
    with pytest.raises(ValueError, match="num_bytes=8 must be at least 1024"):
        machine.peaks("float32", num_bytes=8)


def test_a_floor_is_what_a_decode_cannot_do_without():
    sizes = cases.Sizes(16, 32, is_small=True)
    case = cases.CASES[0]
    config = cases.config_of(case.shape, "float32", sizes)
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), cases.shapes_of(config))
    num_bytes, work = whole._needed(case, "separate", config, params, sizes, 32, 96, 40)
    layer = (64 * 4 * 16 + 2 * 64 * 2 * 16 + 4 * 16 * 64) + 3 * 64 * 128
    norms = 2 * (64 + 64 + 16 + 16) + 64  # two layers: stream, query and key; the last
    matrices, head = 2 * layer + norms, 512 * 64
    cached = 2 * 2 * 2 * 16 * 16  # keys and values, layers, heads, channels, prompt
    assert num_bytes == 32 * 4 * (matrices + head + cached)
    assert work == 2 * (96 * matrices + 40 * head)
    assert machine.floor(2e12, 1e14, FOUND) == (2.0, "memory")
    assert machine.floor(2e11, 1e14, FOUND) == (1.0, "matmul")


def test_a_whole_decode_is_printed_and_stored_whatever_becomes_of_the_next(
    tmp_path, monkeypatch
):
    def broken(config, params):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(cases.WEIGHTS, "broken", broken)
    out = tmp_path / "card.json"
    code, printed, err = command(
        "bench", "--suite", "hotpath", "--quick", "--decodes", "autoregressive",
        "--weights", "separate,broken,fused,int8kv", "--repeats", "1",
        "--out", str(out),
    )  # fmt: skip
    assert code == 2 and "failed, see above: autoregressive (broken)" in err
    assert f"{jax.devices()[0].device_kind}, jax {jax.__version__}" in printed
    assert "FAILED: no such kernel" in printed
    made = json.loads(out.read_text())
    line, failed, fused, coded = made["decodes"]
    assert failed["why"] == "no such kernel" and made["is_ended"]
    assert line["num_calls"] == 32 and line["num_equal"] == 32
    # Equal up to the order of sums: in float32 the same tokens.
    assert fused["num_equal"] == 32 and fused["weight_bytes"] == line["weight_bytes"]
    # The head stays as it is; of float32 a quarter of the layers is left.
    assert coded["weight_bytes"] < 0.6 * line["weight_bytes"]
    assert line["share"] == pytest.approx(line["floor_ms"] / line["ms"])
    assert line["tokens_per_s"] == pytest.approx(32 / line["every_s"][0])
    # Negative control: a decode faster than its floor is refused, but of small sizes.
    fast = whole.Decode(**{**line, "share": 1.5, "bound": "memory"})
    with pytest.raises(ValueError, match="autoregressive, weights separate: 1,500 GB"):
        whole.judge([fast], FOUND)
    whole.judge([fast], None)


def test_a_share_over_all_is_an_error_of_the_benchmark():
    line = hotpath.Line("call", "3m", "1 query", 1, 1, 1.0, 0.9, 0.2, None, None, None)
    hotpath.judge([line], FOUND)
    with pytest.raises(ValueError, match="call 3m 1 query, 1 queries: 1,200 GB/s"):
        hotpath.judge([line._replace(bandwidth_share=1.2)], FOUND)
    with pytest.raises(ValueError, match=r"110,000 GFLOP/s is over .* 100,000"):
        hotpath.judge([line._replace(flops_share=1.1)], FOUND)


@pytest.mark.parametrize(
    "wanted, options",
    [
        ("unknown decode 'x'; known: autoregressive, window", ("--decodes", "x")),
        (
            "weights 'x' must be one of separate, fused",
            ("--quick", "--weights", "x"),
        ),
        ("max_new_tokens=4 at least 8", ("--quick", "--max-new-tokens", "4")),
        ("prompt_len=0 must be", ("--quick", "--prompt-len", "0")),
        ("--decodes is for --suite hotpath", ("--suite", "loop", "--decodes", "all")),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_anything(wanted, options):
    code, out, err = command("bench", "--suite", "hotpath", *options)
    assert (code, out) == (2, "") and wanted in err
