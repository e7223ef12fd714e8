"""What the project promises about its own shape: compiled loops and files."""

import ast
import pathlib
import re
import statistics

import jax
import pytest
from test_transformer import cache_sized_moves

from pdecode import decode, methods, prompts
from pdecode.models import transformer

ROOT = pathlib.Path(__file__).parent.parent
METHODS = sorted((ROOT / "pdecode" / "methods").glob("*/[a-z]*.py"))


def tiny(**changes):
    config = transformer.Config(
        **{
            "vocab_size": 40,
            "width": 16,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 6,
            "mlp_width": 24,
            "mask_id": 39,
            "max_positions": 64,
            **changes,
        }
    )
    return transformer.make_model(config), transformer.init(config, jax.random.key(0))


CAUSAL = tiny()
MASKED = tiny(attention="bidirectional", predicts="masked")
IN_BLOCKS = tiny(attention="block_causal", block_len=4, predicts="masked")
# Unequal rows, so that every per-row path is taken.
PROMPT = prompts.from_rows([[1, 2, 3], [4], [5, 6, 7, 8, 9], [1, 1]], max_new_tokens=14)


@pytest.mark.parametrize(
    "method, models, sizes",
    [
        (methods.autoregressive, CAUSAL, {}),
        (
            methods.speculative_sampling,
            ((CAUSAL[0], CAUSAL[0]), {"model": CAUSAL[1], "drafter": CAUSAL[1]}),
            {"num_draft": 4, "draft_length": "auto"},
        ),
        (methods.jacobi, CAUSAL, {"window": 4}),
        (methods.sjd, CAUSAL, {"window": 4}),
        (
            methods.specinfer,
            ((CAUSAL[0], CAUSAL[0]), {"model": CAUSAL[1], "drafter": CAUSAL[1]}),
            {"branching": (2, 2)},
        ),
        (methods.llada, MASKED, {}),
        (methods.fast_dllm, MASKED, {"cache": "dual", "block_length": 7}),
        (methods.fast_dllm, IN_BLOCKS, {"cache": "dual"}),
        (methods.assd, MASKED, {"num_draft": 3}),
        (methods.any_order, MASKED, {"steps": 5}),
    ],
)
def test_no_cache_sized_copy_in_the_loop(method, models, sizes):
    model, params = models
    traced, _ = decode.traced(
        method, model, params, PROMPT, jax.random.key(0), max_new_tokens=14, **sizes
    )
    text = traced.lower().compile().as_text()
    lengths = 5 + 14  # prompt and generation; slack differs by method
    slots = {size for size in range(lengths, lengths + 9) if f"[4,2,{size},6]" in text}
    assert slots, "no cache found in the program"
    found = [move for size in slots for move in cache_sized_moves(text, 4, size)]
    assert not found, found


def test_one_row_and_one_query_write_in_place():
    """A fused update that two consumers share would copy the cache for one of them."""
    prompt = prompts.from_rows([[1, 2, 3, 4, 5]], max_new_tokens=14)
    model, params = CAUSAL
    traced, _ = decode.traced(
        methods.autoregressive, model, params, prompt, jax.random.key(0),
        max_new_tokens=14,
    )  # fmt: skip
    # The suite's flags choose another code generator, see conftest.py.
    is_old = jax.__version__.startswith("0.10.")
    options = {"xla_cpu_use_fusion_emitters": True} if is_old else {}
    text = traced.lower().compile(compiler_options=options).as_text()
    whole = re.findall(r"= f32\[(?:1,)?2,(?:19|2\d),6\]\S* (\S+)\(", text)
    assert "scatter" in whole, whole
    assert "dynamic-update-slice" not in whole, whole


def test_method_files_are_short_and_independent():
    lines = [len(path.read_text().splitlines()) for path in METHODS]
    own = [count for count, path in zip(lines, METHODS) if path.name != "__init__.py"]
    assert statistics.median(own) < 60
    for path in METHODS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("pdecode.methods"), path
                names = [alias.name for alias in node.names]
                assert not (node.module == "pdecode" and "methods" in names), path
