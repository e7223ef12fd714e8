"""S2D: a drafter of nested sub-models, each draft by the first that is sure of it.

Kavehzadeh et al., 2024, arXiv:2407.01955. `objective=sorted_exits` trains such a
drafter. Deviations: one threshold for all exits but the last, which answers in any
case; above temperature 0 drafts are drawn under the target's own noise, where the paper
has each law's best token; drafts are chains.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import nested
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature, TopK, TopP


def s2d(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    threshold: Annotated[float, Knob(0, 1)] = 0.5,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A chain of drafts by a model with exits, kept while they are the target's tokens.

    A draft leaves at the first exit whose best token has more than `threshold`.

    Guarantee: lossless; token for token the output of plain sampling with the same
    seed, whatever the threshold.
    Cost: 1 + num_draft query tokens a call; num_draft calls of the drafter's first
    sub-model, and of the others as many as are needed.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        nested.nested(drafter, num_draft, threshold, sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
