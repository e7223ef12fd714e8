"""SpecTr: several drafts of one model, kept by approximate optimal transport (K-SEQ).

Sun et al., 2023, arXiv:2310.15141: at every depth the candidates are the
tokens of all drafts that share what was accepted.
"""

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept


def spectr(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_drafts: Count = 8,
    num_draft: Count = 8,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`num_drafts` independent chains of `num_draft` tokens, judged together.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 1 + num_drafts * num_draft query tokens a call; num_draft drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    topology = trees.expand((num_drafts,) + (1,) * (num_draft - 1))
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, topology, sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.k_seq(num_drafts), merges=True),
    )
