"""EAGLE: a layer of its own continues the target's hidden states and drafts from them.

Li et al., 2024, arXiv:2401.15077. The default tree of 25 nodes is the authors'.
"""

from typing import Annotated, Literal

from pdecode import trees
from pdecode.contracts import Decoder, DraftLayer, Sampling
from pdecode.drafters import features, paced, pruned
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
from pdecode.rules import accept

# Ranks among their siblings from the root's child down.
_TREE = (
    "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 "
    "00000 00001"
)


def eagle(
    model: NextModel,
    layer: DraftLayer,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] | None = None,
    draws: Literal["best", "without_replacement"] = "best",
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A static tree of the layer's best tokens, or of draws without replacement.

    `branching` replaces the authors' tree by one in which every node of depth d has
    branching[d] children. Best tokens are judged as given; draws, the paper's way at a
    temperature, by multi-round rejection.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed for
    draws="best", in distribution for draws="without_replacement".
    Cost: 1 + number of nodes query tokens a call; a call of the layer a level.
    """
    topology = trees.choices([tuple(map(int, path)) for path in _TREE.split()])
    if branching is not None:
        topology = trees.expand(branching)
    if draft_length == "auto" and draws != "best" and topology.max_children > 1:
        raise ValueError(f"{draws=} are judged in the order drawn: no {draft_length=}")
    sampling = Sampling(temperature, top_k, top_p)
    rule = accept.by_node(accept.rejection(topology.max_children))
    drafter, sizes = pruned.by_costs(
        features.static_tree(model, layer, topology, sampling, draws=draws),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.match if draws == "best" else rule,
        call_sizes=sizes,
    )
