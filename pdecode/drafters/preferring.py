"""Two drafters, and a row by row choice between what they propose."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Draft, Drafter, Prefix, Round

__all__ = ["preferring"]


def preferring(
    first: Drafter, second: Drafter, is_sure: Callable[[Any], Array]
) -> Drafter:
    """Drafter of what `first` proposes where it is sure, else of what `second` does.

    `is_sure` reads the state of `first` after it proposed: bool [B]. Both observe every
    round, and neither may have probes, a q or a model of its own (ValueError for
    probes).
    """
    if first.num_probes or second.num_probes:
        raise ValueError("a drafter with probes cannot be one of two")
    num_nodes = max(first.num_nodes, second.num_nodes)

    def init(*given):
        return first.init(*given), second.init(*given)

    def propose(params, keys, state, prefix: Prefix):
        one, mine = first.propose(params, keys, state[0], prefix)
        other, its = second.propose(params, keys, state[1], prefix)
        chosen = is_sure(mine)[:, None]

        def pick(a: Array, b: Array) -> Array:
            return jnp.where(chosen, _padded(a, num_nodes), _padded(b, num_nodes))

        draft = Draft(
            tokens=pick(one.tokens, other.tokens),
            parents=pick(one.parents, other.parents),
        )
        return draft, (mine, its)

    def observe(params, keys, state, round: Round):
        return (
            first.observe(params, keys, state[0], round),
            second.observe(params, keys, state[1], round),
        )

    return Drafter(
        num_nodes,
        max(first.max_depth, second.max_depth),
        init,
        propose,
        observe,
        wants=tuple(dict.fromkeys((*first.wants, *second.wants))),
    )


def _padded(nodes: Array, size: int) -> Array:
    """`nodes` [B, N] with absent ones up to `size`."""
    missing = size - nodes.shape[1]
    return jnp.pad(nodes, ((0, 0), (0, missing)), constant_values=-1)
