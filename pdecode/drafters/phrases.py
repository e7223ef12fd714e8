"""A draft model's chain with phrases of the target's own behind it.

What the target predicts at refused nodes is kept as phrases by their first token, and
those that begin with a draft's last token are proposed side by side behind it
(Ouroboros, Zhao et al., 2024, arXiv:2402.13720).
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import trees
from pdecode.contracts import Draft, DraftCost, Drafter, Model, Prefix, Round, Sampling
from pdecode.drafters import causal, lookahead

__all__ = ["Phrases", "Plan", "phrased"]


class Phrases(NamedTuple):
    """The draft model's state, and the phrases."""

    inner: causal.CausalState
    pool: Array  # int32 [B, V, G, M]  what followed each token, newest last; -1: none


class Plan(NamedTuple):
    """What the drafter is made of."""

    model: Model
    chain: Drafter
    num_draft: int
    phrase_len: int  # M
    num_phrases: int  # K, drafted at a time
    num_kept: int  # G


def phrased(
    model: Model,
    sampling: Sampling,
    num_draft: int,
    phrase_len: int,
    num_phrases: int,
    num_kept: int,
) -> Drafter:
    """A chain of `num_draft` under the target's noise, and `num_phrases` behind it.

    Raises ValueError for phrases longer than the chain, which no round could make, and
    for more phrases than are kept.
    """
    if phrase_len > num_draft:
        raise ValueError(
            f"{phrase_len=} must be at most {num_draft=}, where phrases end"
        )
    if num_phrases > num_kept:
        raise ValueError(f"{num_phrases=} of {num_kept=} that a token may have")
    chain = causal.draft_model(model, trees.chain(num_draft), sampling, draws="coupled")
    plan = Plan(model, chain, num_draft, phrase_len, num_phrases, num_kept)
    return Drafter(
        num_nodes=num_draft + num_phrases * phrase_len,
        max_depth=num_draft + phrase_len,
        init=functools.partial(_init, plan),
        propose=functools.partial(_propose, plan),
        observe=functools.partial(_observe, plan),
        wants=("token",),
        num_prefill_calls=chain.num_prefill_calls,
    )


def _init(plan: Plan, params, keys, prompt, prefix: Prefix, output) -> Phrases:
    inner = plan.chain.init(params, keys, prompt, prefix, output)
    batch = prefix.length.shape[0]
    shape = (batch, plan.model.vocab_size, plan.num_kept, plan.phrase_len)
    return Phrases(inner, jnp.full(shape, -1, jnp.int32))


def _propose(plan: Plan, params, keys, state: Phrases, prefix: Prefix):
    # Accepted phrases leave the draft model behind by more than its chain may be.
    width = plan.phrase_len + 2
    _, cache, num_missing = causal.store(
        plan.model, params["drafter"], state.inner, prefix, width
    )
    inner = state.inner._replace(cache=cache, written=prefix.length)
    draft, inner = plan.chain.propose(params, keys, inner, prefix)
    batch = prefix.length.shape[0]
    last = draft.tokens[:, -1]
    behind = state.pool[jnp.arange(batch), jnp.maximum(last, 0)]
    behind = behind[:, -plan.num_phrases :].reshape(batch, -1)
    behind = jnp.where(last[:, None] >= 0, behind, -1)
    nodes = np.arange(plan.num_phrases * plan.phrase_len) + plan.num_draft
    is_first = (nodes - plan.num_draft) % plan.phrase_len == 0
    parents = np.where(is_first, plan.num_draft - 1, nodes - 1).astype(np.int32)
    parents = jnp.broadcast_to(jnp.asarray(parents), behind.shape)
    assert draft.cost is not None  # a draft model was called
    cost = DraftCost(
        num_calls=draft.cost.num_calls + 1,
        num_tokens=draft.cost.num_tokens + num_missing,
        num_tokens_computed=draft.cost.num_tokens_computed + width,
    )
    draft = Draft(
        tokens=jnp.concatenate([draft.tokens, behind], 1),
        parents=jnp.concatenate([draft.parents, parents], 1),
        cost=cost,
    )
    return draft, Phrases(inner, state.pool)


def _observe(plan: Plan, params, keys, state: Phrases, round: Round) -> Phrases:
    inner = plan.chain.observe(params, keys, state.inner, round)
    wanted, size = round.prediction.token, plan.phrase_len
    # At refused nodes: what is wanted at one lane and at the `size` lanes after it.
    lane = np.arange(plan.num_draft - size + 1)
    is_refused = jnp.asarray(lane, jnp.int32)[None] >= round.num_accepted[:, None]
    is_real = (round.draft.tokens[:, : plan.num_draft] >= 0).all(1, keepdims=True)
    pool = lookahead.inserted(
        state.pool,
        jnp.where(is_refused & is_real, wanted[:, lane], -1),
        wanted[:, lane[:, None] + 1 + np.arange(size)[None]],
    )
    # Phrases that were verified, as the target corrects them.
    first = plan.num_draft + 1 + np.arange(plan.num_phrases) * size
    before = np.concatenate(
        [
            np.full((plan.num_phrases, 1), plan.num_draft),
            first[:, None] + np.arange(size - 1)[None],
        ],
        1,
    )
    was_reached = (round.num_accepted >= plan.num_draft)[:, None]
    is_used = round.draft.tokens[:, first - 1] >= 0
    last = round.draft.tokens[:, plan.num_draft - 1][:, None]
    pool = lookahead.inserted(
        pool, jnp.where(was_reached & is_used, last, -1), wanted[:, before]
    )
    return Phrases(inner, pool)
