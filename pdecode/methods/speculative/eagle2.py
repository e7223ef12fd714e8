"""EAGLE-2: EAGLE's draft layer with a tree that grows with its confidence.

Li et al., 2024, arXiv:2406.16858. The layer is EAGLE's (arXiv:2401.15077); the tree is
made of its laws at temperature 1 and nothing in it is drawn.
"""

from pdecode.contracts import Decoder, DraftLayer, Sampling
from pdecode.drafters import features, paced, pruned
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


def eagle2(
    model: NextModel,
    layer: DraftLayer,
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
    Cost: 1 + num_nodes query tokens a call; max_depth calls of the layer.
    """
    drafter, sizes = pruned.by_costs(
        features.grown_tree(model, layer, num_nodes, width=width, max_depth=max_depth),
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
