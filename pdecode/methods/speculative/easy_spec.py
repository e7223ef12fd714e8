"""EasySpec: a drafter whose layers attend side by side, set right once a round.

2025, arXiv:2502.02493. `models.transformer.layer_parallel(model, group)` makes such a
drafter of any transformer, by name drafter="NAME@group=2", NAME the target's own or
another; one whose `apply` is exact drafts as it always does.
Deviation: what runs side by side is left to the compiler, on whatever mesh there is.
"""

from typing import Literal

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept


def easy_spec(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    acceptance: Literal["rejection", "coupled"] = "rejection",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Drafts with the drafter's `apply`; each round begins with its exact `encode`.

    That call stores the tokens just committed over what was drafted of them, and its
    law is that of the first draft.

    Guarantee: lossless in distribution, greedy-identical at temperature 0; "coupled"
    gives token for token the output of plain sampling with the same seed.
    Cost: 1 + num_draft query tokens a call; num_draft drafter calls, the first of them
    exact and of 1 + num_draft query tokens.
    """
    sampling = Sampling(temperature, top_k, top_p)
    is_coupled = acceptance == "coupled"
    return speculative.draft_verify(
        model,
        causal.draft_model(
            drafter,
            trees.chain(num_draft),
            sampling,
            draws="coupled" if is_coupled else "with_replacement",
            keeps_drafts=False,
        ),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.match if is_coupled else accept.by_node(accept.rejection()),
    )
