"""PPD: trained prompt tokens make a target guess ahead in the call that verifies.

Chen et al., 2024, arXiv:2405.18628 (parallel prompt decoding, dynamic sparse tree).
`train.objectives.ppd` trains the prompt tokens. The authors choose the budget by
measured latency; here it is given.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import Decoder, PromptTokens, Sampling
from pdecode.drafters import probes
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP


def ppd(
    model: NextModel,
    prompt_tokens: PromptTokens,
    *,
    max_new_tokens: Count,
    num_lanes: Count = 40,
    rates: Annotated[tuple[int, ...], Size()] = (60, 15, 8, 5),
    fading: Count = 70,
    branching: Annotated[tuple[int, ...], Size()] | None = None,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A tree of what the prompt tokens behind the last accepted token said.

    The trees, one for each number of prompt tokens that may stand there, are the best
    of `num_lanes` nodes and prompt tokens together if the i-th best guess of depth d
    (from zero) is right in rates[i] * (fading / 100) ** d %. Measure these on your
    models: the defaults are only a likely shape. `branching` replaces them by one tree
    in which every node of depth d has branching[d] children, cut to what is known, with
    all prompt tokens behind every node. ValueError for more levels than prompt tokens.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: at most 2 + num_lanes query tokens a call (of a `branching` all nodes, and as
    many prompt tokens as it has levels behind each); no other call.
    """
    num = prompt_tokens.num_tokens
    if branching is None:
        by_depth = [[r / 100 * (fading / 100) ** d for r in rates] for d in range(num)]
        forest = probes.sparse(tuple(map(tuple, by_depth)), num_lanes)
    elif len(branching) > num:
        raise ValueError(f"{branching=} has more levels than {num} prompt tokens")
    else:
        forest = probes.full(trees.expand(branching))
    drafter = probes.probed(
        model,
        forest,
        prompt_tokens.token,
        lambda params: params["prompt_tokens"]["change"],
    )
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
