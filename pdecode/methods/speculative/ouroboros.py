"""Ouroboros: a draft model's chain, lengthened by phrases of the target's own.

Zhao et al., 2024, arXiv:2402.13720. Deviations: the draft model drafts token by token,
without its own lookahead; consecutive predictions at refused nodes make a phrase
whether or not they follow from each other; corrected phrases are added and the old ones
age out; the draft model is brought up to date by a call of its own.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import phrases
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def ouroboros(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 12,
    phrase_len: Count = 6,
    num_phrases: Count = 3,
    num_kept: Count = 20,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A chain of `num_draft`, and `num_phrases` side by side behind it.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft + num_phrases * phrase_len query tokens and num_draft + 1
    drafter calls a call; num_kept phrases a vocabulary entry and row.
    """
    sampling = Sampling(temperature, top_k, top_p)
    drafted = phrases.phrased(
        drafter, sampling, num_draft, phrase_len, num_phrases, num_kept
    )
    return speculative.draft_verify(
        model, drafted, max_new_tokens=max_new_tokens, sampling=sampling
    )
