"""Programs compiled for a GPU that is not there: what is in them.

Needs jax's CUDA plugin (the cuda-aot extra), which compiles without a driver.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from test_lowering import CALLS, KERNEL, shapes

from pdecode import methods, prompts
from pdecode import programs as programs_module
from pdecode.hardware import chips
from pdecode.models import fusing, int8, transformer
from pdecode.models.config import Config

pytestmark = pytest.mark.cuda_aot

TRITON = "__gpu$xla.gpu.triton"
SIZES = {"vocab_size": 512, "width": 128, "num_layers": 2, "num_heads": 4,
         "num_kv_heads": 4, "head_dim": 32, "mlp_width": 256, "dtype": "bfloat16",
         "eos_ids": (), "max_positions": 1024}  # fmt: skip
CAUSAL = Config(**SIZES)
MASKED = Config(**SIZES, attention="bidirectional", predicts="masked", mask_id=511)


@pytest.fixture(scope="module")
def place():
    device = chips.gpu()
    if device is None:
        pytest.skip("compiling for CUDA needs the cuda-aot extra")
    return SingleDeviceSharding(device)


def on(place, tree):
    def struct(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(struct, tree)


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_compiles(place, name):
    *sizes, soft_cap = CALLS[name]
    call = functools.partial(KERNEL, soft_cap=soft_cap, implementation="pallas_gpu")
    with chips.gpu_known():
        trace = jax.jit(call).trace(*on(place, shapes(*sizes)))
        compiled = trace.lower(lowering_platforms=("cuda",)).compile()
    assert TRITON in compiled.as_text()


def loop_of(
    place, method, config, prompt_len, batch_size=1, held=fusing.fused, **sizes
):
    """The compiled loop of a decode of 32 new tokens, as text, and its cache."""
    model = transformer.make_model(config)
    params = jax.eval_shape(lambda: held(transformer.init(config, jax.random.key(0))))
    params = jax.tree.map(
        lambda leaf: (
            leaf.update(dtype=jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf
        ),
        params,
    )
    rows = [[1] * prompt_len] * batch_size
    prompt = prompts.from_rows(rows, max_new_tokens=32)
    sizes["max_new_tokens"] = 32
    static = {"method": method, "models": (model,), "is_dated": False,
              "sizes": tuple(sorted(sizes.items()))}  # fmt: skip
    arguments = params, prompt, jax.random.key(0), {}
    carry = programs_module._start.eval_shape(*arguments, **static)
    loop = jax.jit(
        programs_module._loop,
        static_argnames=programs_module._STATIC,
        donate_argnums=1,
    )
    traced = on(place, (params, carry, {}, jnp.int32(0)))
    with chips.gpu_known():
        lowered = loop.trace(*traced, **static).lower(lowering_platforms=("cuda",))
        text = lowered.compile().as_text()
    leaves = jax.tree.leaves(model.init_cache(prompt, prompt_len + 32))
    return text, leaves[0].shape


def copies(text, shape):
    """Copies of a cache leaf, whatever its number of slots, in a loop's program."""
    batch, heads, _, width = shape
    leaf = rf"bf16\[{batch},{heads},\d+,{width}\]"
    return re.findall(rf"= {leaf}\S* copy\(", text)


LONG, SHORT = 600, 40
DUAL = {"cache": "dual", "block_length": 16}
CASES = {
    "one query, a long cache": (methods.autoregressive, CAUSAL, LONG, 1, {}, True),
    "one query, a short cache": (methods.autoregressive, CAUSAL, SHORT, 1, {}, False),
    "drafts": (methods.prompt_lookup, CAUSAL, LONG, 2, {"num_draft": 7}, True),
    "a window of many rows": (methods.fast_dllm, MASKED, SHORT, 40, DUAL, True),
    "a canvas": (methods.llada, MASKED, LONG, 4, {"steps": 8}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_decodes_have_the_kernel_where_it_is_faster_and_copy_no_cache(place, name):
    method, config, prompt_len, batch_size, sizes, has_kernel = CASES[name]
    text, shape = loop_of(place, method, config, prompt_len, batch_size, **sizes)
    assert (TRITON in text) == has_kernel
    assert not copies(text, shape)


def test_a_copied_cache_is_seen(place):
    """Negative control: the old leaf is wanted beside the new one."""

    def write(leaf, new):
        def body(i, carry):
            leaf, kept = carry
            return leaf.at[:, :, i].set(new), kept + leaf

        return jax.lax.fori_loop(0, 8, body, (leaf, leaf))

    leaf = jax.ShapeDtypeStruct((2, 4, 64, 32), jnp.bfloat16, sharding=place)
    new = jax.ShapeDtypeStruct((2, 4, 32), jnp.bfloat16, sharding=place)
    text = jax.jit(write).trace(leaf, new).lower(lowering_platforms=("cuda",))
    assert copies(text.compile().as_text(), leaf.shape)


def test_int8_weights_come_into_the_loop_as_codes(place):
    def held(params):
        return int8.weights(fusing.fused(params))

    text, _ = loop_of(place, methods.autoregressive, CAUSAL, SHORT, held=held)
    kernel = rf"\[{SIZES['width']},{2 * SIZES['mlp_width']}\]"
    before = text[text.index("\nENTRY ") :]
    assert re.search("s8" + kernel, before) and not re.search("bf16" + kernel, before)
