"""SAM decoding: the longest copy of the text's end, or recycled tokens if it is short.

Hu et al., 2024, arXiv:2411.10666. The automaton over prompt and output is a vector of
match lengths, which finds the same copies. Deviations: no static corpus (see `rest`);
a copy too close to the end gives a shorter draft in place of an earlier, shorter copy.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import ngram, paced, preferring, pruned, recycling
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    NextModel,
    Size,
    Temperature,
    TopK,
    TopP,
)


def sam_decoding(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 15,
    len_threshold: Count = 5,
    widths: Annotated[tuple[int, ...], Size()] = (8, 21, 25, 15, 8, 3),
    num_top: Count = 8,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A chain copied from the context where `len_threshold` tokens agree, else a tree.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + max(num_draft, sum(widths)) query tokens a call; num_top ids a vocabulary
    entry and row.
    """
    sampling = Sampling(temperature, top_k, top_p)
    drafter = preferring.preferring(
        ngram.suffix_match(num_draft),
        recycling.recycling(model, recycling.template(widths, num_top), num_top),
        lambda copied: copied.matched >= len_threshold,
    )
    drafter, sizes = pruned.by_costs(drafter, draft_length, call_costs)
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        call_sizes=sizes,
    )
