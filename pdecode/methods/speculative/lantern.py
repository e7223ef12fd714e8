"""LANTERN: a drafted image token counts the mass of codes that look the same.

Jang et al., 2024, arXiv:2410.03355; with `lantern_lambda` LANTERN++ (Park et al., 2025,
arXiv:2502.06352), whose bound grows with the candidate's own probability, over a static
tree. Here an independent draft model draws the tree, each child from what its elder
siblings leave.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import Codes, Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept, relaxed


def lantern(
    model: NextModel,
    drafter: NextModel,
    codes: Codes,
    *,
    max_new_tokens: Count,
    lantern_delta: Annotated[float, Knob(0, 1)] = 0.1,
    lantern_lambda: Annotated[float, Knob(1, 1000)] | None = None,
    branching: Annotated[tuple[int, ...], Size()] = (4, 1, 1, 1),
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Moves up to `lantern_delta` of the nearest codes' mass to each candidate.

    Params of the role "codes" are the nearest other codes int32 [V, K].
    Guarantee: lossy; lossless in distribution at lantern_delta 0 or lantern_lambda 1,
    and greedy decoding at temperature 0, where a code has no mass to share.
    Cost: 1 + number of nodes query tokens a call; len(branching) drafter calls.
    """
    relaxed.check_codes(codes, model)
    sampling = Sampling(temperature, top_k, top_p)
    topology = trees.expand(branching)
    delta = lantern_delta if lantern_lambda is None else None
    rule = relaxed.lantern(topology.max_children, delta=delta, ratio=lantern_lambda)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, topology, sampling, draws="without_replacement"),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(rule),
    )
