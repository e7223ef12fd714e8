"""APD: a small autoregressive model decides how far a masked model may run ahead.

Israel, Van den Broeck, Grover, 2025, arXiv:2506.00413. The masked model's marginals and
their mixture with the judge's law draw with the same noise; as long as they draw the
same token, it stays. Deviations: the masked model recomputes its keys and values each
round (the paper freezes those older than a window); `coupling="gumbel"` draws from the
mixture as the paper says, "argmax" takes its best token, as the published code does.
"""

from typing import Annotated, Literal

import jax

from pdecode.contracts import Decoder
from pdecode.families import judged
from pdecode.knobs import Count, Knob, MaskedModel, NextModel, Temperature
from pdecode.sampling import sample


def apd(
    model: MaskedModel,
    judge: NextModel,
    *,
    max_new_tokens: Count,
    max_lookahead: Count = 32,
    mixture_weight: Annotated[float, Knob(0, 1)] = 0.5,
    coupling: Literal["gumbel", "argmax"] = "gumbel",
    temperature: Temperature = 0.0,
) -> Decoder:
    """Take drafted tokens, left to right, while the mixture draws the same ones.

    The mixture's logs are mixture_weight * diffusion + (1 - mixture_weight) * judge.
    The first token always stays.
    Guarantee: lossy; what is emitted follows neither law, since agreeing is a
    condition. max_lookahead=1 is the masked model's own law from left to right.
    Cost: at most one call of each model a token; with mixture_weight=1 one of each
    every `max_lookahead` tokens.
    """

    def draw(logits, keys):
        return sample(logits, temperature, keys)

    def verdict(drafted: judged.Drafted):
        ours, its = (
            jax.nn.log_softmax(drafted.logits),
            jax.nn.log_softmax(drafted.judged),
        )
        mixed = mixture_weight * ours + (1 - mixture_weight) * its
        keys = drafted.keys if coupling == "gumbel" else None
        return sample(mixed, temperature, keys) == drafted.tokens, None

    return judged.judged(
        model, judge, draw, verdict, lookahead=max_lookahead,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
