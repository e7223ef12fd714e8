"""Judge decoding: a trained judge accepts what is right in other words.

Bachmann et al., 2025, arXiv:2501.19309. The judge is trained by
`objective="judge"`; it reads the target's hidden state at each drafted token.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import Decoder, Judge, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept, relaxed


def judge_decoding(
    model: NextModel,
    drafter: NextModel,
    judge: Judge,
    *,
    max_new_tokens: Count,
    num_draft: Count = 25,
    threshold: Annotated[float, Knob(0, 1)] = 0.5,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's chain; a token stays if plain rejection or the judge says so.

    Guarantee: lossy; lossless in distribution at threshold 1.
    Cost: 1 + num_draft query tokens a call; num_draft drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        causal.draft_model(drafter, trees.chain(num_draft), sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=relaxed.judged(accept.rejection(), judge, threshold),
    )
