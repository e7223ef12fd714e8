"""Medusa: independent heads fill a static tree with their best tokens.

Cai et al., 2024, arXiv:2401.10774. The default tree of 63 nodes is the authors' for a
model of 7B; of it as many levels as there are heads. `acceptance` "typical" is theirs
for sampling, "match" what is lossless.
"""

from typing import Annotated, Literal

from pdecode import trees
from pdecode.contracts import Decoder, DraftHeads, Sampling
from pdecode.drafters import heads as head_drafters
from pdecode.drafters import paced, pruned
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    Knob,
    NextModel,
    Size,
    Temperature,
)
from pdecode.rules import accept, relaxed

# Ranks among their siblings from the root's child down.
_TREE = (
    "0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 "
    "30 31 40 50 60 70 80 90 000 001 002 003 004 005 006 007 008 009 010 011 012 020 "
    "021 030 040 050 060 070 100 101 200 0000 0001"
)


def medusa(
    model: NextModel,
    heads: DraftHeads,
    *,
    max_new_tokens: Count,
    branching: Annotated[tuple[int, ...], Size()] | None = None,
    acceptance: Literal["match", "typical"] = "match",
    posterior_threshold: Annotated[float, Knob(0, 1)] = 0.09,
    posterior_alpha: Annotated[float, Knob(0, 1)] = 0.3,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
) -> Decoder:
    """A tree whose level d holds the best tokens of head d, the same below all nodes.

    `branching` replaces the authors' tree by one in which every node of depth d has
    branching[d] children. With acceptance="typical" a token passes if its probability
    exceeds min(posterior_threshold, posterior_alpha * exp(-entropy)).

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless for acceptance="match", token for token plain decoding with the
    same seed; lossy for "typical", and then greedy decoding at temperature 0.
    Cost: 1 + number of nodes query tokens a call; no drafter call but one of the layers
    before heads that have some (Amphista's).
    """
    topology = trees.choices([tuple(map(int, path)) for path in _TREE.split()])
    topology = head_drafters.cut(topology, heads)
    if branching is not None:
        topology = trees.expand(branching)
    typical = relaxed.typical(posterior_threshold, posterior_alpha)
    drafter, sizes = pruned.by_costs(
        head_drafters.tree(model, heads, topology),
        draft_length,
        call_costs,
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        acceptance=accept.match if acceptance == "match" else typical,
        call_sizes=sizes,
    )
