"""Blockwise parallel decoding: extra heads propose a block, the base head verifies it.

Stern et al., 2018, arXiv:1811.03115. One call verifies a proposal and, through the
heads, makes the next (the paper's combined scoring and proposal). `match_top` > 1 is
its relaxed criterion: a token passes if it is among the base head's best K.
"""

from pdecode.contracts import Decoder, DraftHeads, Sampling
from pdecode.drafters import heads as head_drafters
from pdecode.drafters import paced, pruned
from pdecode.families import speculative
from pdecode.knobs import CallCosts, Count, DraftLength, NextModel, Temperature
from pdecode.rules import accept, relaxed


def blockwise(
    model: NextModel,
    heads: DraftHeads,
    *,
    max_new_tokens: Count,
    num_draft: Count = 3,
    match_top: Count = 1,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
) -> Decoder:
    """`num_draft` extra heads draft a chain; no drafter call at all.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless for match_top=1, token for token plain decoding with the same
    seed; lossy above it, and then greedy after the accepted tokens.
    Cost: 1 + num_draft query tokens a call.
    """
    sampling = Sampling(temperature)
    drafter, sizes = pruned.by_costs(
        head_drafters.greedy_chain(model, heads, num_draft),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.match if match_top == 1 else relaxed.top_match(match_top),
        call_sizes=sizes,
    )
