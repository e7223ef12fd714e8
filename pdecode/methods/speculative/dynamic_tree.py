"""EAGLE-2's dynamic draft tree, grown with the confidence of a draft model.

Li et al., 2024, arXiv:2406.16858. Here the drafter is an independent model in place of
EAGLE's feature layer; expansion and reranking are the paper's.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import grown, paced, pruned
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


def dynamic_tree(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_nodes: Count = 59,
    width: Count = 10,
    max_depth: Count = 7,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The `num_nodes` likeliest nodes that a beam of `width` finds, level by level.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_nodes query tokens a call; max_depth drafter calls.
    """
    tree, sizes = pruned.by_costs(
        grown.grown_tree(drafter, num_nodes, width=width, max_depth=max_depth),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        tree,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        call_sizes=sizes,
    )
