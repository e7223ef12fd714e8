"""Conditional verification: where the target is unsure, the text decides.

AASD, 2025, arXiv:2505.13204, its acceptance rule, over drafts looked up in the prompt.
`floor` is ours: with much entropy the paper's bar falls below zero.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import ngram
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature
from pdecode.rules import relaxed


def conditional_verification(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 10,
    max_ngram: Count = 3,
    slope: Annotated[float, Knob(0, 100)] = 0.1,
    base: Annotated[float, Knob(0, 1)] = 0.1,
    floor: Annotated[float, Knob(0, 1)] = 0.01,
    temperature: Temperature = 0.0,
) -> Decoder:
    """A drafted token passes with p >= min(base - slope * entropy, max p).

    Guarantee: lossy; greedy decoding at slope 0, base 1 and temperature 0.
    Cost: 1 + num_draft query tokens a call; no drafter calls.
    """
    return speculative.draft_verify(
        model,
        ngram.prompt_lookup(num_draft, max_ngram),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        acceptance=relaxed.conditional(slope, base, floor),
    )
