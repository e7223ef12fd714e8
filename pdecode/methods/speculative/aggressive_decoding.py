"""Aggressive decoding: the draft is the input, from where the output stands in it.

Ge et al., 2022, arXiv:2205.10350 (input-guided aggressive decoding). Deviations: the
input is the whole prompt of a causal model, where the paper has an encoder's source; a
draft is at most `num_draft` tokens of it in place of all that is left.
"""

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


def aggressive_decoding(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 16,
    max_ngram: Count = 3,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The prompt from its beginning, then from the one place that the output is at.

    For texts that copy their input with few changes. A place is known if the output's
    last token, or its last two to `max_ngram`, stand in the prompt exactly once.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; no drafter calls.
    """
    drafter, sizes = pruned.by_costs(
        ngram.input_copy(num_draft, max_ngram),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        call_sizes=sizes,
    )
