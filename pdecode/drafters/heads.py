"""Extra heads on the target's last hidden state as the drafter."""

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, DraftHeads, Model, Prefix, Round, Sampling
from pdecode.kernels.head import api as vocab_head
from pdecode.sampling import without_mask

__all__ = ["greedy_chain", "last_lane"]


def greedy_chain(model: Model, heads: DraftHeads, num_draft: int) -> Drafter:
    """Drafts each head's argmax as a chain; their params are those of the role "heads".

    Head k reads the hidden state that predicted the root, which the last verifying call
    computed, so a draft costs no call. ValueError if there are too few heads.
    """
    if num_draft > heads.num_heads:
        raise ValueError(
            f"num_draft={num_draft} exceeds the {heads.num_heads} heads of {heads.name}"
        )

    sampling = without_mask(model, Sampling())

    def init(params, keys, prompt, prefix: Prefix, output) -> Array:
        del keys
        batch = prompt.lengths.shape[0]
        if output is None:
            weight = model.head(params["model"]).weight
            return jnp.zeros((batch, weight.shape[1]), weight.dtype)
        # The prefill's last lane predicted the root. A one-token row has none: it
        # starts from whatever lane 0 holds, which costs acceptance and nothing else.
        lane = jnp.maximum(prompt.lengths - 2, 0)
        return jnp.take_along_axis(output.hidden, lane[:, None, None], 1)[:, 0]

    def propose(params, keys, hidden: Array, prefix: Prefix):
        del keys, prefix
        ahead = heads.apply(params["heads"], hidden)[:, :num_draft]
        tokens = vocab_head.statistics(
            model.head(params["model"]), ahead, ("token",), sampling
        ).token
        parents = jnp.broadcast_to(jnp.arange(-1, num_draft - 1), tokens.shape)
        return Draft(tokens=tokens, parents=parents), hidden

    def observe(params, keys, hidden: Array, round: Round):
        del params, keys
        leaf = last_lane(round)
        found = jnp.take_along_axis(round.output.hidden, leaf[:, None, None], 1)
        return found[:, 0].astype(hidden.dtype)

    return Drafter(num_draft, num_draft, init, propose, observe)


def last_lane(round: Round) -> Array:
    """Lane int32 [B] of the last accepted token, the root's if none was."""
    if round.path.shape[1] == 0:
        return jnp.zeros_like(round.num_accepted)
    return round.path[:, -1]  # the path repeats its leaf
