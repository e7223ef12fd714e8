"""Autoregressive decoding: the baseline, through the same loop as everything else."""

from typing import Annotated

from pdecode import drafters
from pdecode.contracts import Decoder, Model, Sampling
from pdecode.families import speculative
from pdecode.knobs import Knob, Size


def autoregressive(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    temperature: Annotated[float, Knob(0, 100)] = 0.0,
    top_k: Annotated[int, Knob(1, 2**31 - 1)] | None = None,
    top_p: Annotated[float, Knob(0, 1)] | None = None,
) -> Decoder:
    """One token a call, greedy at temperature 0.

    Guarantee: lossless; it defines what lossless means.
    Cost: one call of one query token for every token.
    """
    sampling = Sampling(temperature, top_k, top_p, banned=speculative.banned(model))
    return speculative.draft_verify(
        model, drafters.nothing(), max_new_tokens=max_new_tokens, sampling=sampling
    )
