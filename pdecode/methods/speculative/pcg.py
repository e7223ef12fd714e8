"""PCG: drafts are accepted by groups of tokens that sound alike.

Principled coarse-grained acceptance, 2025, arXiv:2511.13732. The groups are params, so
that they may come from any embedding (`relaxed.shares`); a partition gives the fixed
groups of GSD, arXiv:2508.07747.
"""

from pdecode import trees
from pdecode.contracts import Codes, Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept, relaxed


def pcg(
    model: NextModel,
    drafter: NextModel,
    codes: Codes,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's chain, accepted token for token by the laws of groups.

    Params of the role "codes" are each token's shares in groups, float [G, V].
    Guarantee: lossy; the first group of a round has the target's law of groups, and
    groups of one token are lossless in distribution.
    Cost: 1 + num_draft query tokens a call; num_draft drafter calls.
    """
    relaxed.check_codes(codes, model)
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, trees.chain(num_draft), sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(relaxed.coarse()),
    )
