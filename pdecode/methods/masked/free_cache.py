"""FreeCache: keys and values far from the front are left as they are.

Hu et al., 2025, arXiv:2505.21467 (FlashDLM). The first call evaluates the canvas; every
later one only what lies within `reach` positions of the first open one. What lies in
front of that keeps the state it had when the front left it, what lies behind keeps that
of the first call.
"""

import jax.numpy as jnp

from pdecode.contracts import (
    Blocks,
    CanvasShape,
    Decoder,
    Lanes,
    Refresh,
    Row,
    Sampling,
    Window,
)
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import blocks, commit


def free_cache(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    reach: Count = 128,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's sampler, block by block, in calls around the front of what is open.

    The authors' blocks have 32 positions; `reach` must cover a block.
    Guarantee: lossy; a `reach` of the whole canvas is LLaDA's sampler.
    Cost: `steps` calls, the first of the whole canvas, the others of 2 * `reach` lanes.
    """
    block_length = min(block_length or 32, max_new_tokens)
    if reach < block_length:
        raise ValueError(
            f"{reach=} is less than {block_length=}: tokens of a block could fall "
            "behind the window before they are stored; raise it"
        )
    grid = blocks.of(model, block_length)
    return masked.masked_diffusion(
        model,
        commit.shared(commit.order("low_confidence"), max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
        window=around_front(reach),
        refresh=Refresh(lambda row: row.turn == 0),
    )


def around_front(reach: int):
    """A window of 2 * `reach` lanes about the first open position."""

    def window(blocks: Blocks, shape: CanvasShape) -> Window:
        del blocks
        width = min(2 * reach, shape.length)

        def apply(row: Row) -> Lanes:
            front = jnp.argmax(row.masked).astype(jnp.int32) - reach
            first = jnp.clip(front, 0, shape.length - width)
            positions = first + jnp.arange(width, dtype=jnp.int32)
            return Lanes(positions, jnp.ones(width, bool))

        return Window(width, apply, is_run=True)

    return window
