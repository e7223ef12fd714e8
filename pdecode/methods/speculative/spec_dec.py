"""SpecDec: a small masked model drafts a block in one call, the target verifies it.

Xia et al., 2022, arXiv:2203.16487 (first named generalised aggressive decoding, GAD).
Drafters are trained by `objective="glancing"`. Deviation: one text and no encoder; the
drafter reads prompt and text together.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import blanks
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, MaskedModel, NextModel, Temperature
from pdecode.rules import accept, relaxed


def spec_dec(
    model: NextModel,
    drafter: MaskedModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 25,
    beta: Count = 1,
    tau: Annotated[float, Knob(0, 1e6)] = 1.0,
    temperature: Temperature = 0.0,
) -> Decoder:
    """A masked model drafts `num_draft` tokens in one call, the target verifies them.

    With `beta` > 1 a token passes if it is among the target's best `beta` tokens and
    at most `tau` nats below the best one; the paper has 3 and 1.0.

    Guarantee: lossless for beta=1, token for token plain decoding with the same seed;
    lossy above it, and then greedy after the accepted tokens.
    Cost: 1 + num_draft query tokens a call; one drafter call, of the whole buffer.
    """
    return speculative.draft_verify(
        model,
        blanks.block(drafter, num_draft),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        acceptance=accept.match if beta == 1 else relaxed.top_match(beta, tau),
    )
