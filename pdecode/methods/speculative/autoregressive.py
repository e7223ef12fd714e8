"""Autoregressive decoding: the baseline, through the same loop as everything else."""

from pdecode import drafters
from pdecode.contracts import Decoder, Sampling
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def autoregressive(
    model: NextModel,
    *,
    max_new_tokens: Count,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """One token a call, greedy at temperature 0.

    Guarantee: lossless; it defines what lossless means.
    Cost: one call of one query token for every token.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model, drafters.nothing(), max_new_tokens=max_new_tokens, sampling=sampling
    )
