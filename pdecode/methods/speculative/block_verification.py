"""Block verification: the draft is accepted or cut as a whole, not token by token.

Sun et al., 2024, arXiv:2403.10444 (algorithm 2).
"""

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept


def block_verification(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's chain, judged by the probability of the whole block.

    Guarantee: lossless in distribution, greedy-identical at temperature 0; in
    expectation never fewer tokens a call than speculative sampling.
    Cost: 1 + num_draft query tokens a call; num_draft calls of the drafter.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, trees.chain(num_draft), sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.block_verification(),
    )
