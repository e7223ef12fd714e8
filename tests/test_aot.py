"""Programs for hardware that is not here: what they hold, and how it is read."""

import json

import jax
import jax.numpy as jnp
import pytest

from pdecode import hardware
from pdecode.cli import main as cli
from pdecode.hardware import aot, chips, hlo
from pdecode.models import shapes, transformer

TEXT = """\
HloModule jit__run

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%async_collective_fusion.1 (p: s32[8,1]) -> s32[8,4] {
  ROOT %again = s32[8,4]{1,0} all-gather(%p), dimensions={1}
}

%body (p: (bf16[8,16])) -> (bf16[8,16]) {
  %r.1 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} all-reduce(%p), to_apply=%add
  %r.2 = bf16[8,16]{1,0:T(8,128)(2,1)} all-reduce(%p), to_apply=%add
  %g = (f32[2], f32[8]) all-gather-start(%p), dimensions={0}
  %f = s32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %k = bf16[8]{0} custom-call(%p), custom_call_target="tpu_custom_call"
  %s = bf16[8,16]{1,0} scatter(%p, %p, %p), to_apply=%add
}

%condition (p: (bf16[8,16])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

ENTRY %main (p: bf16[8,16]) -> (bf16[8,16]) {
  %before = f32[4]{0} reduce-scatter(%p), to_apply=%add
  ROOT %w = (bf16[8,16]{1,0:T(8,128)}, pred[8]{0}, /*index=2*/s32[]) while(%t), condition=%condition, body=%body
}
"""  # noqa: E501


def test_collectives_are_read_with_their_size_and_place():
    read = hlo.read(TEXT)
    assert [tuple(each) for each in read.collectives] == [
        ("all-reduce", "bf16[8,16]", 256, 2, True),
        ("all-gather", "f32[8]", 32, 1, True),
        ("reduce-scatter", "f32[4]", 16, 1, False),
    ]
    assert read.carried_bytes == 256 + 8 + 4
    assert read.mosaic_calls == {"loop": 1, "before": 0}
    assert read.cache_writes == {"scatter": 1}


@pytest.mark.parametrize(
    "target, model, message",
    [
        ("tpu-v9-2x4", "tiny", "known generations: v5e, v5p, v6e"),
        ("gpu", "tiny", "write cuda, or tpu-GENERATION-TOPOLOGY"),
        ("cuda", "llada-9b", "known shapes are tiny, 3m, .*llama-70b"),
    ],
)
def test_unknown_names_are_refused(target, model, message):
    with pytest.raises(ValueError, match=message):
        aot.report(target, model)


@pytest.mark.parametrize("name", ["batch_size", "prompt_len", "max_new_tokens"])
def test_sizes_below_one_are_refused(name, capsys):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        aot.report("cuda", "tiny", **{name: 0})
    assert cli.main(["aot", "--target", "cuda", f"--{name.replace('_', '-')}", "0"])
    assert f"{name}=0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, num_params",
    [
        ("llada-8b", 8_015_581_184),
        ("qwen3-8b", 8_190_735_360),
        ("llama-70b", 70_553_706_496),
    ],
)
def test_a_shape_has_as_many_weights_as_the_model_it_is_of(name, num_params):
    config = shapes.config(name, "bfloat16")
    tree = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == num_params


def test_unknown_shapes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"known shapes: tiny, 3m, .*, llama-70b"):
        shapes.config("8b", "float32")
    with pytest.raises(ValueError, match="known: float32, bfloat16"):
        shapes.config("3m", "float16")


def test_the_default_mesh_uses_every_device():
    assert chips.default_mesh(8, 32) == {"fsdp": 1, "tensor": 8}
    assert chips.default_mesh(256, 32) == {"fsdp": 16, "tensor": 16}
    assert chips.default_mesh(64, 8) == {"fsdp": 8, "tensor": 8}


def test_cuda_is_lowered_and_reported(capsys):
    arguments = ["aot", "--target", "cuda", "--model", "tiny", "--prompt-len", "32"]
    assert cli.main([*arguments, "--max-new-tokens", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weights = found["num_params"] - 2048 * 512 - 5 * 512  # no lookup, no norms
    (call,) = found["calls"]
    assert call["flops_by_formula"] == 2 * weights * 8 * 64
    assert "peak_bytes" not in found
    if chips.gpu() is None:  # no compiler for CUDA
        assert call["kernels"] is None
    else:  # two layers and a head
        assert 20 < call["kernels"] <= 2 * 16 + 12


def test_heads_and_drafters_come_as_the_method_asks():
    sizes: dict = {"prompt_len": 8, "max_new_tokens": 8}
    plain = aot.report("cuda", "3m", **sizes)
    found = aot.report("cuda", "3m", "blockwise", settings={"num_draft": 2}, **sizes)
    # Two heads of two matrices and a norm on a stream of 192.
    assert found["num_params"] - plain["num_params"] == 2 * (2 * 192 * 192 + 192)
    assert [call["lanes"] for call in found["calls"]] == [3]
    for method, branching, lanes in (("hydra", (2, 1), 5), ("eagle", (1, 1), 3)):
        found = aot.report("cuda", "3m", method, settings={"branching": branching},
                           **sizes)  # fmt: skip
        assert [call["lanes"] for call in found["calls"]] == [lanes]
        assert found["num_params"] > plain["num_params"]
    found = aot.report("cuda", "3m", "mtp", settings={"num_draft": 2}, **sizes)
    assert [call["lanes"] for call in found["calls"]] == [3]
    # Rows of one token have no prefill to take a hidden state from.
    short = {**sizes, "prompt_len": 1}
    assert aot.report("cuda", "3m", "blockwise", **short)["calls"][0]["lanes"] == 4
    with pytest.raises(ValueError, match="speculative_sampling needs a drafter"):
        aot.report("cuda", "3m", "speculative_sampling", **sizes)
    with pytest.raises(ValueError, match="takes no drafter, but drafter='tiny'"):
        aot.report("cuda", "3m", "blockwise", drafter="tiny", **sizes)


def compiled(model, **options):
    pytest.importorskip("libtpu", reason="needs the tpu-aot extra")
    if jax.default_backend() != "cpu":
        pytest.skip("JAX_PLATFORMS=cpu keeps libtpu from looking for a TPU")
    return aot.report("tpu-v5e-2x4", model, **options)


@pytest.fixture
def no_host_flags(monkeypatch):
    # libtpu ends the process at a flag of the host's compiler, which has read it here.
    jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.tpu_aot
def test_a_tpu_program_gathers_weights_in_the_loop(no_host_flags):
    found = compiled("tiny", mesh={"fsdp": 4, "tensor": 2})
    assert found["loop_bytes"] <= 1.05 * found["share_bytes"]
    # Weights are the only 16-bit numbers that could be exchanged before it.
    exchanged = [x for x in found["collectives"] if x["shape"].startswith("bf16")]
    assert exchanged and all(x["in_loop"] for x in exchanged)


@pytest.mark.tpu_aot
@pytest.mark.parametrize("method", ["any_order", "fast_dllm_dual"])
def test_a_tpu_program_scatters_no_keys(method, no_host_flags):
    """Some lanes of a run are stored, by rows whose canvas is stale and others."""
    found = compiled("tiny", method=method)
    assert set(found["cache_writes"]) == {"dynamic-update-slice"}


@pytest.mark.tpu_aot
@pytest.mark.parametrize("model", ["tiny", "llada-8b"])
def test_a_tpu_program_keeps_to_its_share(model, no_host_flags):
    found = compiled(model)
    assert found["mosaic_calls"]["loop"] > 0
    # Runs of slots are never scattered: keys and values of each layer.
    num_layers = aot.shape_of(model).num_layers
    assert found["cache_writes"] == {"dynamic-update-slice": 2 * num_layers}
    assert 0 < found["all_reduces_per_layer"] <= 2.5
    assert found["peak_bytes"] < found["memory_bytes"]
    if model == "tiny":
        return
    # The loop carries weights, cache and canvas: 5 % above an eighth at most.
    assert found["loop_bytes"] <= 1.05 * found["share_bytes"]
    # Two a layer, and one for the split embedding table.
    assert found["all_reduces_per_layer"] <= 2 + 1 / 32
    (call,) = found["calls"]
    lanes = call["rows"] * call["lanes"]
    stream = lanes * 4096 * 2
    others = [x for x in found["collectives"] if x["in_loop"] and x["bytes"] != stream]
    # The sampler exchanges statistics: a few numbers a lane and device.
    assert others and all(x["bytes"] <= 64 * lanes for x in others)


# A program as XLA prints it for a GPU, cut down to what is counted.
PRINTED = """HloModule jit_f

%fused (param: f32[4]) -> f32[4] {
  %param = f32[4]{0} parameter(0)
  ROOT %neg = f32[4]{0} negate(%param)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %value = f32[4]{0} get-tuple-element(%state), index=1
  %turned = f32[4]{0} fusion(%value), kind=kLoop, calls=%fused
  %product = f32[4]{0} custom-call(%turned), custom_call_target="__cublas$gemm"
  ROOT %next = (s32[], f32[4]{0}) tuple(%value, %product)
}

%asked (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]{0}) parameter(0)
  ROOT %less = pred[] fusion(%state), kind=kLoop, calls=%fused
}

%graph (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %copied = f32[4]{0} copy(%x)
}

%short (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}

ENTRY %main (x: f32[4], which: pred[]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %which = pred[] parameter(1)
  %flat = f32[2,2]{1,0} bitcast(%x)
  %start = f32[4]{0} all-reduce-start(%x), to_apply=%fused
  %done = f32[4]{0} all-reduce-done(%start)
  %called = f32[4]{0} call(%done), to_apply=%graph
  %chosen = f32[4]{0} conditional(%which, %x, %x), true_computation=%graph, false_computation=%short
  %some = (s32[], f32[4]{0}) while(%x), condition=%asked, body=%body
  ROOT %often = (s32[], f32[4]{0}) while(%x), condition=%asked, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_kernels_are_counted_as_they_are_launched():
    # A collective, a graph's copy, the longer branch, a loop's test and body, and the
    # body of a loop of five turns, which is not tested.
    assert hardware.num_kernels(PRINTED) == 1 + 1 + 1 + (1 + 2) + 5 * 2
    unknown = PRINTED.replace("known_trip_count", "other")
    assert hardware.num_kernels(unknown) == 1 + 1 + 1 + 2 * (1 + 2)
    program = jax.jit(lambda x: jnp.sort(jnp.sin(x)) @ x).lower(jnp.ones(99)).compile()
    assert 2 <= hardware.num_kernels(program) <= 5
