"""KLASS: commit what is confident and has stopped changing.

Kim et al., 2025, arXiv:2511.05664. A position is stable when the divergence from its
law one step before was below a bound in each of the last steps. Deviation: the earlier
law is kept as its `num_kept` likeliest tokens; the divergence is that of the two laws
after all other tokens are made one, which is never above the true one and equals it
when `num_kept` reaches the vocabulary.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, histories


def klass(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count | None = None,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    kl_threshold: Annotated[float, Knob(0, 1e6)] = 0.01,
    kl_history_length: Count = 2,
    num_kept: Count = 8,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Commit stable positions above `threshold`; if there is none, the most confident.

    History begins with each block. The authors' blocks have 32 positions.
    Guarantee: lossy, in both thresholds.
    Cost: between one call a block and one a token.
    """
    if model.attention != "block_causal":
        block_length = min(block_length or 32, max_new_tokens)
    size = min(num_kept, model.vocab_size)

    def apply(params, key, row: Row, prediction, history):
        del params, key
        gap, _ = histories.changed(history, row, prediction)
        history = histories.recorded(history, row, prediction, gap < kl_threshold)
        is_ready = row.open & (history.count[row.positions] >= kl_history_length)
        is_ready &= jnp.exp(prediction.log_prob) >= threshold
        one = commit.best(prediction.log_prob, row.open, 1)
        return jnp.where(is_ready.any(), is_ready, one), history

    return masked.masked_diffusion(
        model,
        Rule(lambda length: histories.blank(length, size), apply, (f"top:{size}",)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.of(model, block_length),
    )
