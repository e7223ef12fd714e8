"""Alignment sampling: copied drafts with the target's own alternatives beside them.

AASD, 2025, arXiv:2505.13204. Deviation: only its drafts; they are verified exactly, by
the target's own sample, in place of the paper's relaxed threshold.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import aligned, paced, pruned
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    NextModel,
    Temperature,
    TopK,
    TopP,
)


def alignment_sampling(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 10,
    max_ngram: Count = 3,
    num_beside: Count = 2,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Prompt lookup with `num_beside` predicted siblings at every copied token.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft * (1 + num_beside) query tokens a call; no drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    drafter, sizes = pruned.by_costs(
        aligned.aligned(model, num_draft, max_ngram, num_beside),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        call_sizes=sizes,
    )
