"""What products of float32 are made of, and how far two right programs may be apart.

Accelerators multiply float32 in fewer bits unless they are told not to: a GPU in
TensorFloat-32 (10 bits of fraction), a TPU in bfloat16 (7). Sums stay in float32. So
the same decision, worked out in calls of different widths, can fall either way where
two tokens are nearer than those bits tell apart.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

# As `jax.lax.Precision` has them; "highest" is float32 everywhere.
LEVELS = ("default", "high", "highest")

# By what is multiplied: the margin between the probabilities of the best two tokens
# below which either may be chosen. About twice what the margins of a byte model of 1.3
# million parameters were off at most from those in float32, over 1,600 tokens (0.0017
# in TensorFloat-32, 0.015 with products and 0.020 with all activations in bfloat16);
# in float32 thirty times the rounding that was seen.
NEAR_TIES = {"float32": 1e-4, "tensorfloat32": 5e-3, "float16": 5e-3, "bfloat16": 4e-2}


def level() -> str | None:
    """The level that is set for this thread, by any of its names; None: the default."""
    config: Any = jax.config
    return config.jax_default_matmul_precision


@contextlib.contextmanager
def at(wanted: str | None) -> Iterator[None]:
    """Everything compiled in the block, in any thread, multiplies at this level.

    None leaves what is set. ValueError for another level.
    """
    if wanted is not None and wanted not in LEVELS:
        raise ValueError(f"precision={wanted!r} must be one of {', '.join(LEVELS)}")
    before = level()
    jax.config.update("jax_default_matmul_precision", wanted or before)
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def products(dtype: str, platform: str | None = None, wanted: str | None = None) -> str:
    """What a model in `dtype` multiplies: a key of NEAR_TIES.

    None: the platform that programs run on, and the level that is set.
    """
    platform = platform or jax.default_backend()
    wanted = wanted or level() or "default"
    if dtype != "float32" or platform == "cpu":
        return dtype if dtype in NEAR_TIES else "float32"
    # Other names that jax takes say themselves what is multiplied.
    if wanted in ("highest", "float32", "F32_F32_F32", "BF16_BF16_F32_X6"):
        return "float32"
    if platform == "gpu":
        return "tensorfloat32"
    # Three passes of bfloat16 are nearer to float32 than to one.
    return "float32" if wanted in ("high", "tensorfloat32") else "bfloat16"


def near_tie(dtype: str) -> float:
    """The margin below which two tokens are a near-tie for a model in `dtype`."""
    return NEAR_TIES[products(dtype)]


def facts(dtype: str = "float32") -> dict[str, str]:
    """What a result says of it: the level that is set, and what is multiplied."""
    return {"level": level() or "default", "products": products(dtype)}
