"""Sequoia: the static tree that accepts most for a budget, drawn without replacement.

Chen et al., 2024, arXiv:2402.12374: the dynamic program over positional acceptance
rates and the verification that is robust to temperature. `tree_size="auto"` is its
hardware-aware budget, by measured costs of calls.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal, nothing
from pdecode.families import speculative
from pdecode.knobs import Count, DraftLength, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept


def sequoia(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_nodes: Count = 64,
    max_depth: Count = 8,
    rates: Annotated[tuple[int, ...], Size()] = (70, 12, 6, 4, 3, 2, 1),
    tree_size: DraftLength = "fixed",
    call_percent: Annotated[tuple[int, ...], Size()] = (100, 100, 100, 100, 116, 161),
    draft_percent: Annotated[int, Size(0)] = 20,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """The best tree of `num_nodes` if child i of any node is accepted in rates[i] %.

    Measure `rates` on your models: the default is only a likely shape. With tree_size
    "auto" the tree is that of at most `num_nodes` nodes, and of 31, which gives most
    tokens for calls that cost call_percent[i] at 1, 2, 4, 8, 16 and 32 lanes, and
    draft_percent a level: perhaps none at all.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 1 + num_nodes query tokens a call; at most max_depth drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    shares = [rate / 100 for rate in rates]
    if tree_size == "auto":
        costs = trees.priced(call_percent, num_nodes)
        topology, _ = trees.sized(shares, costs, draft_percent, max_depth=max_depth)
    else:
        topology = trees.best(shares, num_nodes, max_depth)
    tree = nothing()
    if topology.num_nodes:
        tree = causal.draft_model(
            drafter, topology, sampling, draws="without_replacement"
        )
    return speculative.draft_verify(
        model,
        tree,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection(topology.max_children)),
    )
