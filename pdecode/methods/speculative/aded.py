"""ADED: a tree out of a table of trigrams that the text itself keeps raising.

Liu et al., 2024, arXiv:2407.12021 (adaptive draft-verification). Deviations: the tree
is grown best first in place of a Monte Carlo tree search, whose visits tend to it; a
row raises weights of its own; the target's own sample at each node is matched and the
token that ends the draft is kept, without which the output is biased.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.data.trigrams import Trigrams
from pdecode.drafters import adaptive, paced, pruned
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    Knob,
    Needs,
    NextModel,
    Temperature,
    TopK,
    TopP,
)


def aded(
    model: NextModel,
    table: Annotated[Trigrams, Needs("table")],
    *,
    max_new_tokens: Count,
    num_nodes: Count = 64,
    max_depth: Count = 5,
    window: Count = 16,
    bump: Annotated[float, Knob(0, 3)] = 0.04,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The `num_nodes` likeliest nodes by a table of `data.trigrams`.

    Each call the trigrams of the last `window` tokens that the table has gain `bump`.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_nodes query tokens a call; no drafter calls; a row's own weights, as
    many as the table's.
    """
    drafter, sizes = pruned.by_costs(
        adaptive.adaptive(
            table, num_nodes, max_depth=max_depth, window=window, bump=bump
        ),
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
