"""GSD with a codebook: tokens are taken for one another if their codes lie close.

So et al., 2025, arXiv:2508.07747, on SJD's redraws, with the released test of distances
between codes. A token without a code (its row is not finite) is alone, where the
released code leaves the test out for every group that holds such a token.
"""

from typing import Annotated

from pdecode.contracts import Codes, Decoder, Sampling
from pdecode.drafters import guesses, iterates
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept, relaxed


def gsd_codebook(
    model: NextModel,
    codes: Codes,
    *,
    max_new_tokens: Count,
    window: Count = 16,
    size: Count = 7,
    max_gap: Annotated[float, Knob(0, 1)] = 0.15,
    max_distance: Annotated[float, Knob(0, 1e9)] = 0.5,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`gsd`, whose groups hold only codes at a squared distance below `max_distance`.

    Params of the role "codes" are the codebook, float [V, D].
    Guarantee: lossy; max_distance=0 and max_gap=0 leave each token alone, which is
    speculative Jacobi as it is.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    relaxed.check_codes(codes, model)
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        iterates.iterate(model, window, sampling, transport=guesses.independent()),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(relaxed.grouped(size, max_gap, max_distance)),
    )
