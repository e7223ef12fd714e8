"""Speculative sampling: a small model drafts a chain, the target accepts or corrects.

Leviathan et al., 2022, arXiv:2211.17192 (algorithm 1); Chen et al., 2023,
arXiv:2302.01318 have the same rule. `acceptance="coupled"` is the drafter-invariant
variant with shared Gumbel noise (Daliri et al., 2024, arXiv:2408.07978).
"""

from typing import Annotated, Literal

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal, paced
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
from pdecode.rules import accept


def speculative_sampling(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    acceptance: Literal["rejection", "coupled"] = "rejection",
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    draft_cost: Annotated[float, Knob(0, 1e9)] = 0.2,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's chain, kept by modified rejection sampling.

    With draft_length "auto" each row drafts what its chances are worth at these costs
    of a target's and of a drafter's call, at most `num_draft` and perhaps nothing.

    Guarantee: lossless in distribution, greedy-identical at temperature 0; "coupled"
    gives token for token the output of plain sampling with the same seed.
    Cost: 1 + num_draft query tokens a call and num_draft calls of the drafter, at most.
    """
    sampling = Sampling(temperature, top_k, top_p)
    is_coupled = acceptance == "coupled"
    draws = "coupled" if is_coupled else "with_replacement"
    sizes: tuple[int, ...] = ()
    if draft_length == "auto":
        sizes = paced.lengths(num_draft)
        prices = paced.Prices(call_costs, draft_cost)
        chain = paced.draft_model(drafter, sizes, prices, sampling, draws=draws)
    else:
        chain = causal.draft_model(
            drafter, trees.chain(num_draft), sampling, draws=draws
        )
    return speculative.draft_verify(
        model,
        chain,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.match if is_coupled else accept.by_node(accept.rejection()),
        call_sizes=sizes,
    )
