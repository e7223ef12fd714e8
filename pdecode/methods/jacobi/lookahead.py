"""Lookahead decoding: n-grams out of a window of Jacobi steps, verified in one call.

Fu et al., 2024, arXiv:2402.02057; defaults are theirs for a 7B model. Deviations: the
window begins whole with random tokens of the prompt in place of a warm-up that fills it
row by row, and its n-grams count from the same step on; the window follows the argmax
at every temperature, and guesses are matched with the target's own sample.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import lookahead as trajectories
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP


def lookahead(
    model: NextModel,
    *,
    max_new_tokens: Count,
    level: Annotated[int, Size(2)] = 5,
    window_size: Count = 7,
    guess_set_size: Count = 7,
    pool_from_prompt: bool = True,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Jacobi steps feed a pool of n-grams, which are the drafts; no drafter.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: (level - 1) * (window_size + guess_set_size) query tokens a call;
    guess_set_size n-grams a vocabulary entry and row.
    """
    sampling = Sampling(temperature, top_k, top_p)
    drafter = trajectories.lookahead(
        model,
        level,
        window_size,
        guess_set_size,
        is_pool_from_prompt=pool_from_prompt,
    )
    return speculative.draft_verify(
        model, drafter, max_new_tokens=max_new_tokens, sampling=sampling
    )
