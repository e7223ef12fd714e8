"""Sequoia: the static tree that accepts most for a budget, drawn without replacement.

Chen et al., 2024, arXiv:2402.12374: the dynamic program over positional acceptance
rates and the verification that is robust to temperature. Choosing the budget by a
measured call cost is `trees.sized`.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept


def sequoia(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_nodes: Count = 64,
    max_depth: Count = 8,
    rates: Annotated[tuple[int, ...], Size()] = (70, 12, 6, 4, 3, 2, 1),
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The best tree of `num_nodes` if child i of any node is accepted in rates[i] %.

    Measure `rates` on your models: the default is only a likely shape.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 1 + num_nodes query tokens a call; at most max_depth drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    topology = trees.best([rate / 100 for rate in rates], num_nodes, max_depth)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, topology, sampling, draws="without_replacement"),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection(topology.max_children)),
    )
