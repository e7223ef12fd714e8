"""Prompt lookup: the draft is what followed the last few tokens earlier in the text.

Saxena, 2023 (prompt-lookup-decoding, no paper). Here the draft is cut where the text
ends instead of searching on for a full-length continuation, and the leftmost match of
the longest suffix wins.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Model, Sampling
from pdecode.drafters import ngram
from pdecode.families import speculative
from pdecode.knobs import Knob, Size


def prompt_lookup(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    num_draft: Annotated[int, Size()] = 10,
    max_ngram: Annotated[int, Size()] = 3,
    temperature: Annotated[float, Knob(0, 100)] = 0.0,
    top_k: Annotated[int, Knob(1, 2**31 - 1)] | None = None,
    top_p: Annotated[float, Knob(0, 1)] | None = None,
) -> Decoder:
    """Drafts copied from the context, matched against the target's own tokens.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; no drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p, banned=speculative.banned(model))
    return speculative.draft_verify(
        model,
        ngram.prompt_lookup(num_draft, max_ngram),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
