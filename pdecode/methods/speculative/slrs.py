"""SLRS: rejection between vocabularies, one token at a time.

String-level rejection sampling, Timor et al., 2025, arXiv:2502.05202. Deviation: the
token is drawn from its own law, that of the first token which the draft model's
continuation is read as, and not by writing the continuation.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import spelled
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, SpelledModel, Temperature, TopK, TopP
from pdecode.rules import accept


def slrs(
    model: NextModel,
    drafter: SpelledModel,
    *,
    max_new_tokens: Count,
    per_token: Count = 4,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """One drafted token a call, kept by modified rejection sampling.

    For draft models of bytes or letters and targets of few tokens: a round asks for the
    law at every node of the target's spelling. `drafter` is that of `slem`.

    Guarantee: lossless in distribution, greedy-identical at temperature 0.
    Cost: 2 query tokens a call; two calls of the drafter or more, one of them as wide
    as the target's tokens have prefixes.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        spelled.first_token(drafter, sampling, per_token),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection()),
    )
