"""Methods for models trained with uniform noise."""

from pdecode.methods.uniform.diffusion_gemma import diffusion_gemma

__all__ = [
    "diffusion_gemma",
]

VARIANTS = {}
