"""A cascade: the draft model is itself decoded by drafts copied from the text.

Chen et al., 2023, arXiv:2312.11462 (cascade speculative drafting). Its vertical
cascade, with prompt lookup below the draft model. Deviation: no horizontal cascade,
which has other drafters for the later tokens of a draft.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import cascaded
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def cascade(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 8,
    num_copied: Count = 4,
    max_ngram: Count = 3,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`coupled` drafts of `num_draft` tokens, made in fewer calls of the draft model.

    It verifies up to `num_copied` tokens a call, which prompt lookup proposes to it.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; at most num_draft calls of the drafter, of
    2 + num_copied query tokens.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        cascaded.cascaded(drafter, sampling, num_draft, num_copied, max_ngram),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
