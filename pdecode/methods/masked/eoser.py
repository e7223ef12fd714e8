"""EOSER: end-of-text tokens wait, the more so the earlier it is.

Yang et al., 2025, arXiv:2509.23924 (EOS early rejection). Deviation: the factor follows
all steps of a row; in the published code its step begins again with every block while
its length is that of all, so that with several blocks it never reaches `g_max`.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def eoser(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    g_min: Annotated[float, Knob(1e-6, 1)] = 0.4,
    g_max: Annotated[float, Knob(1e-6, 1)] = 1.0,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's sampler with the confidence of EOS times a factor, `g_min` to `g_max`.

    Guarantee: lossy, and biased at any number of steps: the order looks at the tokens
    drawn.
    Cost: `steps` calls of the whole canvas.
    """
    total = max_new_tokens if steps is None else steps
    grid = blocks.of(model, block_length)

    def factor(row):
        progress = jnp.minimum(row.turn / max(total - 1, 1), 1)
        return g_min + (g_max - g_min) * progress

    by = commit.damped(model.eos_ids, factor)
    return masked.masked_diffusion(
        model,
        commit.shared(by, max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
    )
