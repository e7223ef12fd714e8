"""Traversal verification: a token tree judged from its leaves up, path by path.

Weng et al., 2025, arXiv:2505.12398; the rule is derived anew here (`accept`).
"""

from typing import Annotated, Literal

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept


def traversal_verification(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] = (2, 2, 1),
    draws: Literal["with_replacement", "without_replacement"] = "without_replacement",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's tree, `branching[d]` children for every node of depth d.

    Guarantee: lossless in distribution, greedy-identical at temperature 0; in every
    case tried it accepts no less in expectation than node by node.
    Cost: 1 + number of nodes query tokens a call; len(branching) drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, trees.expand(branching), sampling, draws=draws),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.traversal_verification(),
    )
