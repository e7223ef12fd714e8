"""Hydra: heads that see the tokens drafted before theirs fill a static tree.

Ankner et al., 2024, arXiv:2402.05109. The paper searches its tree for each model; here
`branching` says it.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import ChainedHeads, Decoder, Sampling
from pdecode.drafters import heads as head_drafters
from pdecode.drafters import paced, pruned
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


def hydra(
    model: NextModel,
    chained_heads: ChainedHeads,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] = (4, 2, 1),
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Each node's children are the best tokens of a head that has read its path.

    Every node of depth d has branching[d] children, which takes len(branching) heads.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + number of nodes query tokens a call; a head a level, and no drafter call
    but one of the layer before heads that have one (Hydra++'s, Clover's).
    """
    drafter, sizes = pruned.by_costs(
        head_drafters.chained_tree(model, chained_heads, trees.expand(branching)),
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
