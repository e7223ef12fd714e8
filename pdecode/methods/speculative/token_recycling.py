"""Token recycling: a tree of what the target last predicted behind each token.

Luo et al., 2024, arXiv:2408.08696. Deviations: the paper's 80-node template is known
by its level sizes; within them nodes of the smallest rank sums are taken. The table
starts from the prompt's own predictions and is not kept across prompts, so that a row
does not depend on what was decoded before it.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import paced, pruned, recycling
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


def token_recycling(
    model: NextModel,
    *,
    max_new_tokens: Count,
    widths: Annotated[tuple[int, ...], Size()] = (8, 21, 25, 15, 8, 3),
    num_top: Count = 8,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A static tree of successors, `widths[d]` nodes at depth d + 1.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + sum(widths) query tokens a call; num_top ids a vocabulary entry and row.
    """
    sampling = Sampling(temperature, top_k, top_p)
    tree = recycling.template(widths, num_top)
    drafter, sizes = pruned.by_costs(
        recycling.recycling(model, tree, num_top),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        call_sizes=sizes,
    )
