"""Jacobi decoding: guess a window, let the target correct all of it at once, repeat.

Santilli et al., 2023, arXiv:2305.10427: `block_length=None` slides the window (their
Jacobi over the whole length, of which only `window` positions are evaluated), a number
is GS-Jacobi with blocks of that length. Positions whose output equals the guess fed are
committed at once, so the window shrinks and no call is spent on confirming.
`start="text"` begins guesses as random tokens of the text so far, as consistency models
are trained for.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import guesses, iterates
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def jacobi(
    model: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 8,
    block_length: Count | None = None,
    start: Literal["repeat", "uniform", "text"] = "repeat",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Fixed-point iteration on the target's own tokens; no drafter.

    Guarantee: lossless; token for token plain decoding with the same seed (above
    temperature 0 the noise is frozen at each position).
    Cost: 1 + window query tokens a call.
    """
    sampling = Sampling(temperature, top_k, top_p)
    entry = {
        "repeat": guesses.repeated,
        "uniform": guesses.uniform,
        "text": guesses.of_text,
    }
    return speculative.draft_verify(
        model,
        iterates.iterate(
            model,
            window,
            sampling,
            entry=entry[start](),
            block_length=block_length,
        ),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
