"""Speculative Jacobi decoding (SJD) and its coupled drafts (MC-SJD).

SJD: Teng et al., 2024, arXiv:2410.01699, transport "independent". MC-SJD / SCD: 2025,
arXiv:2510.24211, transports "maximal" and "gumbel". Deviations: guesses that enter the
window uniformly declare q uniform rather than a point mass, which is as exact and
accepts more; q is set to the target's law for every carried guess (keeping an old q
there, as one released version does, biases the output).
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import iterates
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept


def sjd(
    model: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 16,
    transport: Literal["independent", "maximal", "gumbel"] = "maximal",
    start: Literal["uniform", "repeat"] = "uniform",
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Jacobi iteration for sampling: guesses are kept by rejection sampling.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    sampling = Sampling(temperature, top_k, top_p)
    moved = {
        "independent": iterates.independent,
        "maximal": iterates.maximal,
        "gumbel": iterates.gumbel,
    }
    entry = {"uniform": iterates.uniform, "repeat": iterates.repeated}
    return speculative.draft_verify(
        model,
        iterates.iterate(
            model,
            window,
            sampling,
            transport=moved[transport](),
            entry=entry[start](),
        ),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection()),
    )
