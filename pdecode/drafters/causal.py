"""A smaller causal model as the drafter, with its own cache, over any static tree."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import rng, trees
from pdecode.contracts import (
    Cache,
    Draft,
    Drafter,
    Model,
    Prefix,
    Query,
    Sampling,
    SlotRun,
    Visibility,
)
from pdecode.drafters import ignore
from pdecode.families import speculative
from pdecode.kernels.head import api as vocab_head
from pdecode.rules import accept
from pdecode.sampling import categorical

DRAWS = ("with_replacement", "without_replacement", "coupled")


class CausalState(NamedTuple):
    """The drafter's cache holds the first `cached` committed tokens."""

    cache: Cache
    cached: Array  # int32 [B]


def draft_model(
    model: Model,
    topology: trees.Topology,
    sampling: Sampling,
    *,
    draws: str = "with_replacement",
) -> Drafter:
    """Drafts `topology` with `model`; the decoder's params are (target, drafter).

    `draws` says how the children of a node are chosen, each with its truthful q:
    "with_replacement" i.i.d. from the drafter's law, "without_replacement" in turn from
    what its elder siblings leave, "coupled" under the target's own noise and without q,
    for chains and `accept.match`. Guessed nodes are never stored: each level's call
    repeats the nodes above it as unstored lanes, and what a round committed is stored
    by the next round's first call, so the cache is never compacted.
    """
    if draws not in DRAWS:
        raise ValueError(f"{draws=} must be one of {DRAWS}")
    if draws == "coupled" and topology.max_children > 1:
        raise ValueError("coupled siblings would be equal: draft a chain instead")
    num_nodes, max_depth = topology.num_nodes, topology.max_depth
    parents, depths = np.array(topology.parents), np.array(topology.depths)
    reach = np.eye(num_nodes, dtype=bool)
    for node in range(num_nodes):
        if parents[node] >= 0:
            reach[node] |= reach[parents[node]]

    def init(params, keys, prompt, prefix: Prefix, output):
        del keys, output
        # `store` writes max_depth + 1 lanes, of which one at least is committed.
        cache = model.init_cache(prompt, prefix.tokens.shape[1] + max_depth + 1)
        _, cache = speculative.prefill(model, params[1], prompt, cache)
        return CausalState(cache, prompt.lengths - 1)

    def propose(params, keys, state: CausalState, prefix: Prefix):
        batch = prefix.length.shape[0]
        root = prefix.length - 1
        hidden, cache = store(model, params[1], state, prefix, max_depth + 1)
        head = model.head(params[1])
        tokens = jnp.full((batch, num_nodes), -1, jnp.int32)
        q: list[Array] = [hidden] * num_nodes  # each is replaced below
        for level in range(1, max_depth + 1):
            if level > 1:
                above = np.flatnonzero(depths < level)
                query = Query(
                    tokens=jnp.maximum(tokens[:, above], 0),
                    positions=root[:, None] + depths[None, above],
                    slots=None,
                    visible=Visibility(
                        start=jnp.zeros((batch, len(above)), jnp.int32),
                        stop=jnp.broadcast_to(
                            prefix.length[:, None], (batch, len(above))
                        ),
                        among=jnp.broadcast_to(
                            reach[np.ix_(above, above)], (batch, *[len(above)] * 2)
                        ),
                    ),
                )
                output, cache = model.apply(params[1], query, cache)
                hidden = output.hidden[:, depths[above] == level - 1]
            places = functools.partial(
                rng.noise, keys, rng.TARGET, (root + level)[:, None]
            )
            wants = ("token",) if draws == "coupled" else ("probs",)
            prediction = vocab_head.statistics(head, hidden, wants, sampling, places)
            # The level above in node order, so parent i is lane i of `hidden`.
            parents_here = [-1] if level == 1 else np.flatnonzero(depths == level - 1)
            for lane, parent in enumerate(parents_here):
                children = np.flatnonzero(parents == parent)
                if draws == "coupled":
                    tokens = tokens.at[:, children[0]].set(prediction.token[:, lane])
                    continue
                law = prediction.probs[:, lane]
                for child in children:
                    key = rng.noise(
                        keys,
                        rng.DRAFT,
                        (root + level)[:, None],
                        round=root,
                        index=jnp.full((batch, 1), child, jnp.int32),
                    )[:, 0]
                    token = categorical(law, key)
                    is_possible = jnp.take_along_axis(law, token[:, None], 1)[:, 0] > 0
                    tokens = tokens.at[:, child].set(jnp.where(is_possible, token, -1))
                    q[child] = law
                    if draws == "without_replacement":
                        rest = law * (jnp.arange(law.shape[1])[None] != token[:, None])
                        law = accept.normalised(rest, jnp.zeros_like(rest))
        draft = Draft(
            tokens=tokens,
            parents=jnp.broadcast_to(jnp.asarray(parents, jnp.int32), tokens.shape),
            q=None if draws == "coupled" else jnp.stack(q, 1),
        )
        return draft, CausalState(cache, prefix.length)

    return Drafter(num_nodes, max_depth, init, propose, ignore, is_paired=True)


def store(model: Model, params, state: CausalState, prefix: Prefix, width: int):
    """Stores the committed tokens that the drafter's cache lacks, at most `width`.

    Returns (hidden [B, 1, E] at the root, cache). The root is the last of them.
    """
    place = state.cached[:, None] + jnp.arange(width)[None]
    last = jnp.minimum(place, prefix.tokens.shape[1] - 1)
    query = Query(
        tokens=jnp.take_along_axis(prefix.tokens, last, 1),
        positions=place,
        # What stands behind the root is written over before it is seen.
        slots=SlotRun(state.cached),
        visible=Visibility(start=jnp.zeros_like(place), stop=place + 1),
    )
    output, cache = model.apply(params, query, state.cache)
    # A finished row has nothing pending; its draft is not used.
    lane = jnp.maximum(prefix.length - 1 - state.cached, 0)
    return jnp.take_along_axis(output.hidden, lane[:, None, None], 1), cache
