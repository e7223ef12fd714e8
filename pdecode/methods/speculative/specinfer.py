"""SpecInfer: a static token tree of sampled drafts, multi-round rejection at each node.

Miao et al., 2023, arXiv:2305.09781 (multi-step speculative sampling). Drawing children
without replacement and updating q to match is recursive rejection sampling (Jeon et
al., 2024, arXiv:2402.14160); "greedy" draws are those of Hu et al., 2025,
arXiv:2502.18779.
"""

from typing import Annotated, Literal

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept


def specinfer(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] = (2, 2, 1),
    draws: Literal[
        "with_replacement", "without_replacement", "greedy"
    ] = "with_replacement",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's token tree, `branching[d]` children for every node of depth d.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 1 + number of nodes query tokens a call; len(branching) drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    topology = trees.expand(branching)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, topology, sampling, draws=draws),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection(topology.max_children)),
    )
