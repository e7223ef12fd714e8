"""OPT-Tree: the draft tree with the largest expected accepted length.

Wang et al., 2024, arXiv:2406.17276. Every level's beam is as wide as the
tree, as in the paper.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import grown, paced, pruned
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    Knob,
    NextModel,
    Temperature,
    TopK,
    TopP,
)


def opt_tree(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_nodes: Count = 50,
    max_depth: Count = 10,
    delta: Annotated[float, Knob(0, 1000)] = 0.5,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A tree of `num_nodes` nodes; a row stops at the level that adds `delta` or less.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_nodes query tokens a call; up to max_depth drafter calls.
    """
    tree = grown.grown_tree(
        drafter,
        num_nodes,
        width=min(num_nodes, drafter.vocab_size),
        max_depth=max_depth,
        min_gain=delta,
    )
    tree, sizes = pruned.by_costs(tree, draft_length, call_costs)
    return speculative.draft_verify(
        model,
        tree,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        call_sizes=sizes,
    )
