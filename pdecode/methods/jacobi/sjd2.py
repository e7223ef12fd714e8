"""SJD2: speculative Jacobi whose guesses are denoised in the space of embeddings.

2025, arXiv:2510.08994. The model should be one that was tuned to predict clean tokens
from noisy embeddings, with as many levels (`objective="jacobi_denoising"`); any other
is decoded as well, and no faster.
Deviations: the noise level is told by what stands at a slot alone, without an encoding
of it; what is accepted ends at the first noisy slot, else it would not be lossless.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import denoised, guesses
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.rules import accept


def sjd2(
    model: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 96,
    levels: Annotated[int, Size(0)] = 20,
    transport: Literal["independent", "maximal"] = "independent",
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Slots enter as noise and are tokens `levels` calls later; then as in `sjd`.

    Guarantee: lossless in distribution relative to the model given, greedy-identical at
    temperature 0; levels=0 is `sjd`.
    Cost: 1 + window query tokens a call; the head is also read once to recompute q.
    """
    sampling = Sampling(temperature, top_k, top_p)
    moved = {"independent": guesses.independent, "maximal": guesses.maximal}
    return speculative.draft_verify(
        model,
        denoised.denoised(
            model, window, sampling, levels, transport=moved[transport]()
        ),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection()),
    )
