"""Typical acceptance: a drafted token passes if the target does not find it odd.

Medusa, Cai et al., 2024, arXiv:2401.10774, over the dynamic tree of a
draft model in place of Medusa's heads.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import grown
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature
from pdecode.rules import relaxed


def typical_acceptance(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    posterior_threshold: Annotated[float, Knob(0, 1)] = 0.09,
    posterior_alpha: Annotated[float, Knob(0, 1)] = 0.3,
    num_nodes: Count = 63,
    width: Count = 10,
    max_depth: Count = 5,
    temperature: Temperature = 0.7,
) -> Decoder:
    """Accepts p > min(posterior_threshold, posterior_alpha * exp(-entropy)).

    Guarantee: lossy; greedy decoding at temperature 0.
    Cost: 1 + num_nodes query tokens a call; max_depth drafter calls.
    """
    return speculative.draft_verify(
        model,
        grown.grown_tree(drafter, num_nodes, width=width, max_depth=max_depth),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        acceptance=relaxed.typical(posterior_threshold, posterior_alpha),
    )
