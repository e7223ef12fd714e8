"""SpecReason: a small model writes a reasoning step, the target keeps or rewrites it.

Pan et al., 2025, arXiv:2504.07891. Deviations: a step's score is its mean log-
probability under the target, which the verifying call gives, in place of a digit the
target is asked for; a step ends with one of the ids `delimiters`, with EOS, or after
`num_draft` tokens.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from pdecode import trees
from pdecode.contracts import BlockRule, Decoder, Draft, Prediction, Sampling
from pdecode.drafters import causal, stepwise
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Size, Temperature, TopK, TopP


def specreason(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Annotated[int, Size(2)] = 32,
    threshold: Annotated[float, Knob(-1e9, 1)] = -1.0,
    delimiters: Annotated[tuple[int, ...], Size(0)] = (10,),
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Whole steps of the drafter are kept if their score in nats reaches `threshold`.

    A refused step is written by the target, token by token, before drafts go on. Above
    0 every step is refused, and at -1e9 none is.

    Guarantee: lossy; the target's own decoding at threshold=1, the drafter's at -1e9.
    Cost: 1 + num_draft query tokens and num_draft drafter calls a call, those of rows
    that the target writes included.
    """
    sampling = Sampling(temperature, top_k, top_p)
    ends = (*delimiters, *model.eos_ids)  # nothing behind a text's end is judged
    drafts = causal.draft_model(drafter, trees.chain(num_draft), sampling)
    return speculative.draft_verify(
        model,
        stepwise.stepwise(drafts, ends),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=by_step(threshold, ends),
    )


def by_step(threshold, delimiters: tuple[int, ...]) -> BlockRule:
    """Keeps a chain up to its first delimiter, or nothing of it; lossy.

    What follows a step that is kept is the draft's next token, not the target's.
    """

    def apply(draft: Draft, prediction: Prediction):
        p, tokens = prediction.probs, draft.tokens
        place = jnp.arange(tokens.shape[0])
        is_end = stepwise.is_delimiter(tokens, delimiters) | (place == place[-1] - 1)
        size = jnp.argmax(is_end) + 1  # a drafted token is left to follow it
        log_probs = jax.nn.log_softmax(prediction.logits[:-1])
        own = jnp.take_along_axis(log_probs, jnp.maximum(tokens, 0)[:, None], 1)[:, 0]
        score = jnp.where(place < size, own, 0).sum() / size
        is_kept = (tokens[0] >= 0) & (score >= threshold)
        stop = jnp.arange(p.shape[0]) == jnp.where(is_kept, size, 0)
        follow = jax.nn.one_hot(tokens[jnp.minimum(size, place[-1])], p.shape[1])
        return stop.astype(p.dtype), jnp.where(is_kept, follow[None], p)

    return BlockRule(apply, wants=("probs", "logits"))
