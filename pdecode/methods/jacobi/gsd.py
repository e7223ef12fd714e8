"""GSD: speculative Jacobi whose guesses pass by the probability of a group of tokens.

So et al., 2025, arXiv:2508.07747, on SJD's redraws. Deviation: groups are by rank and
probability alone; `gsd_codebook` tests the distance between codes too, which takes a
codebook.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import guesses, iterates
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept, relaxed


def gsd(
    model: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 16,
    size: Count = 7,
    max_gap: Annotated[float, Knob(0, 1)] = 0.15,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A guess is kept as often as the tokens of neighbouring rank together would be.

    Guarantee: lossy; `size` and `max_gap` say which tokens are taken for one another,
    and max_gap=0 leaves each alone.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        iterates.iterate(model, window, sampling, transport=guesses.independent()),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(relaxed.grouped(size, max_gap)),
    )
