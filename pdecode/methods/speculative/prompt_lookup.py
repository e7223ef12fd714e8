"""Prompt lookup: the draft is what followed the last few tokens earlier in the text.

Saxena, 2023 (prompt-lookup-decoding, no paper). The leftmost match of the longest
suffix wins. `continuation="whole"` is the original, which searches on until all
`num_draft` tokens follow the match; "cut" drafts what there is, as later ports do.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import ngram, paced, pruned
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


def prompt_lookup(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 10,
    max_ngram: Count = 3,
    continuation: Literal["cut", "whole"] = "cut",
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Drafts copied from the context, matched against the target's own tokens.

    With draft_length "auto" a draft is as long as its chances are worth the lanes, at
    most `num_draft`, and a call has no lanes that no row of the batch uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call, at most; no drafter calls.
    """
    drafter = ngram.prompt_lookup(
        num_draft, max_ngram, is_whole=continuation == "whole"
    )
    drafter, sizes = pruned.by_costs(drafter, draft_length, call_costs)
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        call_sizes=sizes,
    )
