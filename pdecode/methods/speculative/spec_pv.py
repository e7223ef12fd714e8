"""SpecPV: drafts are judged on a part of a long context, and now and then on all of it.

2025, arXiv:2512.02337. Defaults are theirs. Deviations: a draft model's chain in place
of a trained head's tree; blocks are scored by keys, and shared by layers and heads; a
context that the part holds is no case of its own, and full passes go on in it.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import causal
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.models import partial
from pdecode.rules import accept


def spec_pv(
    model: NextModel,
    drafter: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    block_length: Count = 16,
    num_first: Annotated[int, Size(0)] = 2,
    num_retrieved: Annotated[int, Size(0)] = 256,
    num_last: Count = 8,
    buffer_len: Count = 20,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A draft model's chain, judged on the first, last and retrieved blocks.

    Guarantee: lossy; lossless as speculative sampling while the blocks hold the whole
    context. What was accepted is not judged again, only its keys and values are made
    exact.
    Cost: 1 + num_draft query tokens on blocks and buffer a call; in a full pass, at the
    latest after buffer_len + 1 tokens, those since the last one besides, on everything;
    num_draft drafter calls.
    """
    sampling = Sampling(temperature, top_k, top_p)
    parts = partial.Parts(
        block_length, num_first, num_retrieved, num_last, buffer_len + 1 + num_draft
    )
    base = speculative.draft_verify(
        partial.partial(model, parts),
        causal.draft_model(drafter, trees.chain(num_draft), sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        acceptance=accept.by_node(accept.rejection()),
    )

    def step(params, keys, state):
        """A step of draft-and-verify, with the lanes of full passes counted."""
        after, info = base.step(params, keys, state)
        old, new, active = state.cache, after.cache, info.num_calls > 0
        asked = jnp.where(active, new.num_lanes - old.num_lanes, 0)
        computed = new.num_lanes_computed - old.num_lanes_computed
        return after, info._replace(
            num_query_tokens=info.num_query_tokens + asked,
            num_query_tokens_computed=info.num_query_tokens_computed
            + jnp.where(active, computed, 0),
            num_dispatches=info.num_dispatches + new.num_passes - old.num_passes,
        )

    return base._replace(step=step, guarantee="lossy")
