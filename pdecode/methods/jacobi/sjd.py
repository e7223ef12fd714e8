"""Speculative Jacobi decoding (SJD) and its coupled drafts (MC-SJD).

SJD: Teng et al., 2024, arXiv:2410.01699, transport "independent". MC-SJD / SCD: 2025,
arXiv:2510.24211, transports "maximal" and "gumbel". Deviations: guesses that enter the
window uniformly declare q uniform rather than a point mass, which is as exact and
accepts more; q is set to the target's law for every carried guess (keeping an old q
there, as one released version does, biases the output).
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Model, Sampling
from pdecode.drafters import iterates
from pdecode.families import speculative
from pdecode.knobs import Knob, Size
from pdecode.rules import accept


def sjd(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    window: Annotated[int, Size()] = 16,
    transport: Literal["independent", "maximal", "gumbel"] = "maximal",
    start: Literal["uniform", "repeat"] = "uniform",
    temperature: Annotated[float, Knob(0, 100)] = 1.0,
    top_k: Annotated[int, Knob(1, 2**31 - 1)] | None = None,
    top_p: Annotated[float, Knob(0, 1)] | None = None,
) -> Decoder:
    """Jacobi iteration for sampling: guesses are kept by rejection sampling.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    sampling = Sampling(temperature, top_k, top_p, banned=speculative.banned(model))
    return speculative.draft_verify(
        model,
        iterates.iterate(model, window, sampling, transport=transport, start=start),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection()),
    )
