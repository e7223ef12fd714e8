"""FastCoder: drafts for code from the session, the project and other code.

Zhao et al., 2025, arXiv:2502.17139 (first named CodeSwift). Deviations: what a session
verified is found as the longest copy in prompt and output in place of a cache by hashed
tokens; where nothing is worth looking up is given (`skipped`) and not learned.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.data.datastore import Store
from pdecode.drafters import ngram, paced, preferring, pruned, retrieval
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    Knob,
    Needs,
    NextModel,
    Size,
    Temperature,
    TopK,
    TopP,
)

Weight = Annotated[int, Knob(0, 1000)]


def fastcoder(
    model: NextModel,
    corpus: Store,
    other: Annotated[Store, Needs("store")],
    *,
    max_new_tokens: Count,
    num_draft: Count = 64,
    draft_len: Count = 10,
    min_match: Count = 2,
    num_matches: Count = 32,
    session_match: Count = 6,
    corpus_weight: Weight = 2,
    other_weight: Weight = 1,
    skipped: Annotated[tuple[int, ...], Size(0)] | None = None,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """What followed `session_match` tokens in this text, else a tree from two stores.

    `corpus` is the project, `other` is code in general; a copy counts its weight.
    Behind an id of `skipped`, such as indentation, the stores are not searched.
    With draft_length "auto" a draft has as many nodes as are worth their lanes.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; no drafter calls, six binary searches.
    """
    stores = retrieval.merged(
        corpus,
        other,
        num_draft,
        weights=(corpus_weight, other_weight),
        skipped=skipped or (),
        min_match=min_match,
        num_matches=num_matches,
        length=draft_len,
    )
    copies = ngram.suffix_match(min(draft_len, num_draft))
    drafter = preferring.preferring(
        copies, stores, lambda copied: copied.matched >= session_match
    )
    drafter, sizes = pruned.by_costs(drafter, draft_length, call_costs)
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        call_sizes=sizes,
    )
