"""SLEM: a draft model of another vocabulary, whose text is read back and matched.

String-level exact match, Timor et al., 2025, arXiv:2502.05202. Deviations: the draft
model reads the committed tokens as they are spelled, so nothing is aligned; its draft
is read back by the longest tokens that fit in place of the target's own tokenizer.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import spelled
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, SpelledModel, Temperature, TopK, TopP


def slem(
    model: NextModel,
    drafter: SpelledModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 8,
    per_token: Count = 4,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`num_draft` tokens of the drafter's own vocabulary, as tokens of the target's.

    `drafter` keeps its own ids; its params are those of `drafters.spelled.tables`, made
    of both tokenizers where models are named, and its cache has `per_token` slots for
    each token of the target's text.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; num_draft calls of the drafter, and more
    where its text grew by more than 16 tokens.
    """
    return speculative.draft_verify(
        model,
        spelled.strings(drafter, num_draft, per_token),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
