"""PEARL: the drafter drafts on while the target judges what it drafted before.

2024, arXiv:2408.11850. Both models are in one program, and neither reads what the other
makes in the same phase. Deviation: the noise of a test is that of its position and
phase; the released code tests two positions with one draw, which biases the second.
"""

from typing import Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import overlapped
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP
from pdecode.rules import accept


def pearl(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 4,
    acceptance: Literal["rejection", "coupled"] = "rejection",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Drafts `window` tokens a phase, and goes on drafting until one is refused.

    `window` is best near the ratio of a target's call to a drafter's.

    Guarantee: lossless in distribution, greedy-identical at temperature 0; "coupled"
    gives token for token the output of plain sampling with the same seed.
    Cost: a phase is one call of `window` query tokens and `window` drafter calls, as
    long as the longer of the two where they run side by side; it commits 1 to `window`
    tokens and no bonus.
    """
    is_coupled = acceptance == "coupled"
    return overlapped.overlapped(
        model,
        drafter,
        window,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        acceptance=accept.match if is_coupled else accept.rejection(),
    )
