"""BiLD: a little model writes while it is sure, the big one corrects what it must.

Kim et al., 2023, arXiv:2302.07863, with the rollback test at every
position; the released code looks at the first one only.
"""

from typing import Annotated

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature
from pdecode.rules import relaxed


def bild(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 10,
    fallback_threshold: Annotated[float, Knob(0, 2)] = 0.6,
    rollback_threshold: Annotated[float, Knob(0, 1e9)] = 5.0,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Drafts up to `num_draft` tokens; none where the drafter's best is below fallback.

    The target cuts a token of -log p above `rollback_threshold` that is not its argmax.
    Guarantee: lossy; greedy decoding at rollback_threshold 0 and temperature 0.
    Cost: 1 + num_draft query tokens a call; num_draft drafter calls.
    """
    sampling = Sampling(temperature)
    return speculative.draft_verify(
        model,
        causal.draft_model(
            drafter,
            trees.chain(num_draft),
            sampling,
            min_confidence=fallback_threshold,
        ),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=relaxed.rollback(rollback_threshold),
    )
