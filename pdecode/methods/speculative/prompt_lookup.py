"""Prompt lookup: the draft is what followed the last few tokens earlier in the text.

Saxena, 2023 (prompt-lookup-decoding, no paper). The leftmost match of the longest
suffix wins. `continuation="whole"` is the original, which searches on until all
`num_draft` tokens follow the match; "cut" drafts what there is, as later ports do.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import ngram
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def prompt_lookup(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 10,
    max_ngram: Count = 3,
    continuation: Literal["cut", "whole"] = "cut",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Drafts copied from the context, matched against the target's own tokens.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; no drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        ngram.prompt_lookup(num_draft, max_ngram, is_whole=continuation == "whole"),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
