"""Next blocks: a first block token by token, then one block a call.

Next block prediction: Ren et al., 2025, arXiv:2502.07737, whose blocks are rows of a
frame. DetailFlow: Liu et al., 2025, arXiv:2505.21473, whose blocks are details of an
image from coarse to fine. Deviation: the next block is asked for by masks at its
positions, where the papers read it off the outputs of the block before.
"""

import numpy as np

from pdecode.contracts import Decoder, Sampling
from pdecode.families import frontier
from pdecode.knobs import Count, MaskedModel, Temperature, TopK, TopP


def next_block(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count = 16,
    is_first_whole: bool = False,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Blocks of `block_length` tokens, left to right.

    `is_first_whole` draws the first block in one call too, behind a prompt that is a
    block itself.
    Guarantee: exact at blocks of one token; lossy above it, by independence within a
    block.
    Cost: K + (N - K) / K calls for N tokens in blocks of K, or N / K.
    """
    place = np.arange(max_new_tokens)
    block = place // block_length
    # The first block's tokens take a turn each.
    one_by_one = np.minimum(place, block_length - 1)
    rank = block if is_first_whole else block + one_by_one
    return frontier.frontier(
        model,
        rank,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
