"""REST: a tree of what followed the text's end in a datastore.

He et al., 2023, arXiv:2311.08252. Deviations: of more copies than `num_matches` evenly
spaced ones are read rather than the first 5,000; above temperature 0 the target's own
sample at each node is matched and the token that ends the draft is kept, without which
the output is biased; no draft is made where nothing is found.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.data.datastore import Store
from pdecode.drafters import paced, pruned, retrieval
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


def rest(
    model: NextModel,
    corpus: Store,
    *,
    max_new_tokens: Count,
    num_draft: Count = 64,
    draft_len: Count = 10,
    min_match: Count = 2,
    num_matches: Count = 64,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The `num_draft` most frequent continuations, as a tree, of a `data.datastore`.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; no drafter calls, three binary searches.
    """
    sampling = Sampling(temperature, top_k, top_p)
    drafter = retrieval.retrieval(
        corpus,
        num_draft,
        min_match=min_match,
        num_matches=num_matches,
        length=draft_len,
    )
    drafter, sizes = pruned.by_costs(drafter, draft_length, call_costs)
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        call_sizes=sizes,
    )
