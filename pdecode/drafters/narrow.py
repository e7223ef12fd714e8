"""The target as its own drafter, in fewer bits, on the target's own cache."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from pdecode import trees
from pdecode.contracts import Drafter, Model, Prefix, Sampling
from pdecode.drafters import causal, ignore
from pdecode.models import quantized

__all__ = ["is_inside", "narrow"]


def narrow(
    model: Model, num_draft: int, sampling: Sampling, group: int, *, draws: str
) -> Drafter:
    """Chains of `model` with weights and cache in 4 bits, for `families.self_drafted`.

    Its weights are coded once, before the first step. A draft ends where a group of the
    cache does: behind that the verifier would read other bits than its call does.
    """
    view = quantized.quantized(model, group, bits=4)
    base = causal.draft_model(view, trees.chain(num_draft), sampling, draws=draws)

    def init(params, keys, prompt, prefix, output):
        del keys, prompt, prefix, output
        return quantized.narrow(params["model"])

    def propose(params, keys, state: tuple[Any, Any], prefix: Prefix):
        weights, cache = state
        root = prefix.length - 1
        # What is committed is in the target's cache, all but the root.
        start = causal.CausalState(cache, root)
        own = {**params, "drafter": quantized.widened(weights)}
        draft, _ = base.propose(own, keys, start, prefix)
        place = prefix.length[:, None] + jnp.arange(num_draft)[None]
        kept = is_inside(place, root[:, None], group)
        return draft._replace(tokens=jnp.where(kept, draft.tokens, -1)), state

    return base._replace(
        init=init, propose=propose, observe=ignore, num_prefill_calls=0
    )


def is_inside(place: Array, root: Array, group: int) -> Array:
    """Whether the lane at `place` reads what the lane at `root` does."""
    return place // group == root // group
