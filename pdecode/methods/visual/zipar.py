"""ZipAR: a row of an image begins when the one above it has a few tokens.

He et al., 2024, arXiv:2412.04062. Rows that have begun go on together, a token each in
every call. Before a row's first token the latest one of the row above stands in for
that row's last, and is written over when that is drawn. Deviations: what was not fed
yet is seen by nobody (the released code attends to empty slots), and the window does
not adapt.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.families import wavefront
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import orders


def zipar(
    model: NextModel,
    *,
    max_new_tokens: Count,
    row_length: Count,
    window: Count = 8,
    is_first_whole: bool = False,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`window` tokens of a row before the next one begins.

    `is_first_whole` draws the first row alone, as the released code does.
    Guarantee: lossy, by what a row does not see of the one above; token for token plain
    sampling where the window is a row or more.
    Cost: W + (H - 1) window calls for H rows of W tokens, of a token a row that has
    begun; 2 W + (H - 2) window with the first row alone.
    """
    rank = orders.wavefront(
        max_new_tokens, row_length, window, is_first_whole=is_first_whole
    )
    return wavefront.wavefront(
        model,
        rank,
        orders.latest_above(rank, row_length),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
