"""Speculative Jacobi decoding (SJD) and its coupled drafts (MC-SJD).

SJD: Teng et al., 2024, arXiv:2410.01699, transport "independent". MC-SJD / SCD: 2025,
arXiv:2510.24211, transports "maximal", "gumbel" and "gumbel_equal", which accepts by
equality under the shared noise and keeps no q. Deviations: guesses that enter the
window uniformly, or drawn from the law behind the last guess ("sample"), declare that
law as q rather than a point mass, which is as exact and accepts more; q is the target's
law for every carried guess (an old q, as one released version keeps, is biased).
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import guesses, iterates
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept


def sjd(
    model: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 16,
    transport: Literal["independent", "maximal", "gumbel", "gumbel_equal"] = "maximal",
    start: Literal["uniform", "repeat", "horizontal", "vertical", "sample"] = "uniform",
    row_length: Count | None = None,
    start_ids: Annotated[tuple[int, ...], Size(0)] | None = None,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Jacobi iteration for sampling: guesses are kept by rejection sampling.

    "horizontal" and "vertical" copy the token to the left or above, in an image of
    `row_length` tokens a row. "uniform", and "sample" before it has a law, draw from
    the ids `start_ids`, first and one past the last.

    Guarantee: lossless in distribution, greedy-identical at temperature 0;
    "gumbel_equal" is token for token plain sampling with the same seed.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    sampling = Sampling(temperature, top_k, top_p)
    moved = {
        "independent": guesses.independent,
        "maximal": guesses.maximal,
        "gumbel": guesses.gumbel,
        "gumbel_equal": guesses.argmax,
    }
    entry = {
        "uniform": guesses.uniform,
        "repeat": guesses.repeated,
        "sample": guesses.neighbour,
    }
    if start in entry:
        began = entry[start]()
    elif row_length is None:
        raise ValueError(f"{start=} needs row_length, the tokens of an image's row")
    else:
        began = guesses.copied(row_length, is_above=start == "vertical")
    if start_ids is not None and len(start_ids) != 2:
        raise ValueError(f"{start_ids=} must be two: the first and one past the last")
    if start_ids is not None and start not in ("uniform", "sample"):
        raise ValueError(f"{start=} draws no ids: leave out {start_ids=}")
    drafter = iterates.iterate(
        model,
        window,
        sampling,
        transport=moved[transport](),
        entry=began,
        start_ids=start_ids,
    )
    is_equal = transport == "gumbel_equal"
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.match if is_equal else accept.by_node(accept.rejection()),
    )
