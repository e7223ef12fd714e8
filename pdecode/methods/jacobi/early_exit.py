"""Jacobi decoding that stops after a few calls and keeps the guesses it has then.

CEED-VLA: Song et al., 2025, arXiv:2506.13725: one window over a block of known length,
left at a preset iteration. FastCoT (Zhang et al., 2023, arXiv:2311.08263) is the same
with a window that slides over a rationale: what was confirmed and the guesses behind it
are the rationale, from which a decode of its own goes on to the answer. Deviation:
guesses that no call has predicted yet are left out.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import guesses, iterates
from pdecode.families import cut_short, speculative
from pdecode.knobs import Count, NextModel, Temperature


def early_exit(
    model: NextModel,
    *,
    max_new_tokens: Count,
    window: Count = 22,
    max_iters: Count = 22,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Jacobi iteration over a window, cut after `max_iters` calls.

    Guarantee: lossy; its first max_iters tokens are those of plain decoding with the
    same seed.
    Cost: at most max_iters calls of 1 + window query tokens.
    """
    sampling = Sampling(temperature)
    drafter = iterates.logged(
        iterates.iterate(model, window, sampling, entry=guesses.of_text())
    )
    base = speculative.draft_verify(
        model, drafter, max_new_tokens=max_new_tokens, sampling=sampling
    )
    return cut_short.cut_short(model, base, max_iters, iterates.predicted)
