"""Models by the shape of their weights alone: for benchmarks and compiling ahead.

Sizes of published models are those of their own `config.json`; what a shape computes is
the transformer of `pdecode.models.transformer`.
"""

import dataclasses

from pdecode.models.config import Config, Rope

DTYPES = ("float32", "bfloat16")

_MASKED = {"attention": "bidirectional", "predicts": "masked"}
SHAPES = {
    # The smallest that eight devices divide and the attention kernel takes.
    "tiny": Config(
        vocab_size=2048,
        width=512,
        num_layers=2,
        num_heads=8,
        head_dim=128,
        mlp_width=1024,
        mask_id=2047,
        eos_ids=(2046,),
        name="tiny",
        **_MASKED,
    ),
    "3m": Config(
        vocab_size=1024,
        width=192,
        num_layers=7,
        num_heads=3,
        mlp_width=512,
        tied=True,
        name="3m",
    ),
    "30m": Config(
        vocab_size=8192,
        width=512,
        num_layers=8,
        num_heads=8,
        mlp_width=1536,
        tied=True,
        name="30m",
    ),
    "130m": Config(
        vocab_size=32000,
        width=768,
        num_layers=15,
        num_heads=12,
        mlp_width=2048,
        tied=True,
        name="130m",
    ),
    # GSAI-ML/LLaDA-8B-Instruct
    "llada-8b": Config(
        vocab_size=126464,
        width=4096,
        num_layers=32,
        num_heads=32,
        mlp_width=12288,
        rope=Rope(theta=500_000.0),
        norm_eps=1e-5,
        mask_id=126336,
        eos_ids=(126081,),
        name="llada-8b",
        **_MASKED,
    ),
    # Qwen/Qwen3-8B
    "qwen3-8b": Config(
        vocab_size=151936,
        width=4096,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_width=12288,
        rope=Rope(theta=1_000_000.0),
        qk_norm=True,
        eos_ids=(151645,),
        name="qwen3-8b",
    ),
    # meta-llama/Llama-3.1-70B
    "llama-70b": Config(
        vocab_size=128256,
        width=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        mlp_width=28672,
        rope=Rope(theta=500_000.0, scaling="llama3", factor=8.0),
        norm_eps=1e-5,
        eos_ids=(128001,),
        name="llama-70b",
    ),
}


def config(name: str, dtype: str) -> Config:
    """The named shape with activations in `dtype`.

    ValueError listing the known shapes or dtypes.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known shapes: {', '.join(SHAPES)}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    return dataclasses.replace(SHAPES[name], dtype=dtype)
