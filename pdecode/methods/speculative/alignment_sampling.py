"""Alignment sampling: copied drafts with the target's own alternatives beside them.

AASD, 2025, arXiv:2505.13204. Deviation: only its drafts; they are verified exactly, by
the target's own sample, in place of the paper's relaxed threshold.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import aligned
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def alignment_sampling(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 10,
    max_ngram: Count = 3,
    num_beside: Count = 2,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Prompt lookup with `num_beside` predicted siblings at every copied token.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft * (1 + num_beside) query tokens a call; no drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        aligned.aligned(model, num_draft, max_ngram, num_beside),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
