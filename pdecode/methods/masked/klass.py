"""KLASS: commit what is confident and has stopped changing.

Kim et al., 2025, arXiv:2511.05664. A position is stable when the divergence from its
law one step before was below a bound in each of the last steps. Deviation: the earlier
law is kept as its `num_kept` likeliest tokens; the divergence is that of the two laws
after all other tokens are made one, which is never above the true one and equals it
when `num_kept` reaches the vocabulary.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit


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

    def apply(params, key, row: Row, prediction, memory: History):
        del params, key
        now = (prediction.top_ids, jnp.exp(prediction.top_log_probs))
        before = (memory.ids[row.positions], memory.probs[row.positions])
        calm = divergence(*now, *before) < kl_threshold
        count = memory.count[row.positions]
        count = jnp.where(calm & (count >= 0), count + 1, 0)
        is_ready = row.open & (count >= kl_history_length)
        is_ready &= jnp.exp(prediction.log_prob) >= threshold
        one = commit.best(prediction.log_prob, row.open, 1)
        where = jnp.where(row.open, row.positions, row.tokens.shape[0])
        kept = zip(memory, (*now, count))
        memory = History(*(old.at[where].set(new, mode="drop") for old, new in kept))
        return jnp.where(is_ready.any(), is_ready, one), memory

    return masked.masked_diffusion(
        model,
        Rule(lambda length: _none(length, size), apply, (f"top:{size}",)),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.of(model, block_length),
    )


class History(NamedTuple):
    """What a row remembers of the step before; float32 as the law is."""

    ids: Array  # int32 [L, K]
    probs: Array  # float32 [L, K]
    count: Array  # int32 [L]  steps in a row that changed little; -1: no law yet


def _none(length: int, size: int) -> History:
    """No law before."""
    shape = (length, size)
    nothing = jnp.full(shape, -1, jnp.int32), jnp.zeros(shape)
    return History(*nothing, jnp.full(length, -1, jnp.int32))


def divergence(ids: Array, probs: Array, old_ids: Array, old_probs: Array) -> Array:
    """KL [W] of laws [W, K] from older ones, over the tokens both name and one rest."""
    same = ids[..., :, None] == old_ids[..., None, :]
    old = jnp.where(same, old_probs[..., None, :], 0).sum(-1)
    both = same.any(-1)
    rest = 1 - jnp.where(both, probs, 0).sum(-1)
    old_rest = 1 - old.sum(-1)
    terms = jnp.where(both, _term(probs, old), 0).sum(-1)
    return terms + _term(rest, old_rest)


def _term(p: Array, q: Array) -> Array:
    """p * log(p / q); nothing where p is as good as zero."""
    tiny = 1e-7  # one minus a sum of float32 probabilities is no better than this
    ratio = jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(q, tiny))
    return jnp.where(p > tiny, p * ratio, 0)
