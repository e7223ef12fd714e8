"""Diagonal decoding: a wavefront over the rows of a frame, and over frames.

Ye et al., 2025, arXiv:2503.14070; MineWorld, arXiv:2504.08388. Each row begins when the
one above it has `window` tokens. Across frames the first row of the next one follows
the last row of this one in the same way, so frames overlap. Deviation: the true last
token of a row is fed when it is drawn (the released code keeps its stand-in), and there
are no action tokens between frames.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import wavefront
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import orders


def diagonal_decoding(
    model: NextModel,
    *,
    max_new_tokens: Count,
    row_length: Count,
    window: Count = 2,
    frame_length: Count | None = None,
    mode: Literal["image", "video"] = "image",
    stand_in: Literal["last", "frame"] = "last",
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Frames of `frame_length` tokens are completed ("image") or overlap ("video").

    What is fed before a row's first token is the latest one drawn ("last"), or what
    stands at that place in the frame before, the prompt's for the first ("frame").
    Guarantee: lossy, by what a row does not see of the one above; token for token plain
    sampling where the window is a row or more.
    Cost: W + (H - 1) window calls a frame of H rows of W tokens; in "video" H window,
    but for the last.
    """
    frame = max_new_tokens if frame_length is None else frame_length
    if frame % row_length and frame != max_new_tokens:
        raise ValueError(
            f"frame_length={frame} is no multiple of row_length={row_length}: frames "
            "have whole rows"
        )
    cut = frame if mode == "image" else None
    rank = orders.wavefront(max_new_tokens, row_length, window, frame_length=cut)
    instead = orders.latest_above(rank, row_length)
    if stand_in == "frame":
        instead = orders.before_in_frame(rank, frame)
    return wavefront.wavefront(
        model,
        rank,
        instead,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
