"""Guided diffusion: a small autoregressive model accepts or corrects a masked draft.

Hu et al., 2025, arXiv:2505.21467 (FlashDLM, the half that is not its cache). "topk"
takes what is among the judge's `top_k` likeliest; "topk_relative" what is among its
first two and at least half as likely as the first; "threshold" what the judge gives
`threshold`; "deterministic" the judge's own best token alone.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from pdecode.contracts import Decoder
from pdecode.families import judged
from pdecode.knobs import Count, Knob, MaskedModel, NextModel, Temperature
from pdecode.sampling import sample


def guided_diffusion(
    model: MaskedModel,
    judge: NextModel,
    *,
    max_new_tokens: Count,
    max_lookahead: Count | None = None,
    test: Literal["deterministic", "topk", "topk_relative", "threshold"] = "topk",
    top_k: Annotated[int, Knob(1, 2**31 - 1)] = 5,
    threshold: Annotated[float, Knob(0, 1)] = 0.5,
    on_mismatch: Literal["guider", "diffusion"] = "guider",
    temperature: Temperature = 0.0,
) -> Decoder:
    """Draft all that is left, take what passes the judge's test from left to right.

    At the first failure the judge's best token is written ("guider"), or nothing but a
    first token ("diffusion"). The paper drafts the whole answer (`max_lookahead` None).
    Guarantee: lossy; with test="deterministic" and the guider it is the judge's own
    greedy decoding: lossless for the wrong model.
    Cost: at most one call of each model a token.
    """

    def draw(logits, keys):
        return sample(logits, temperature, keys)

    def verdict(drafted: judged.Drafted):
        log_probs = jax.nn.log_softmax(drafted.judged)
        mine = jnp.take_along_axis(log_probs, drafted.tokens[..., None], 2)
        # Ties go to the lowest id, as in an argmax.
        ids = jax.lax.broadcasted_iota(jnp.int32, log_probs.shape, 2)
        lower = ids < drafted.tokens[..., None]
        above = (log_probs > mine) | ((log_probs == mine) & lower)
        rank, best = above.sum(-1), log_probs.max(-1)
        mine = mine[..., 0]
        stays = {
            "deterministic": rank < 1,
            "topk": rank < top_k,
            "topk_relative": (rank < 2) & (mine >= best + jnp.log(0.5)),
            "threshold": mine >= jnp.log(threshold),
        }[test]
        instead = jnp.argmax(log_probs, -1).astype(jnp.int32)
        return stays, instead if on_mismatch == "guider" else None

    return judged.judged(
        model, judge, draw, verdict, max_new_tokens=max_new_tokens,
        lookahead=max_new_tokens if max_lookahead is None else max_lookahead,
    )  # fmt: skip
