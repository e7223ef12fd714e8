"""WINO: commits generously, and reopens what a shadow block then doubts.

Hong et al., 2025, arXiv:2507.18578. A probe at every position of the block says, in the
same call, how likely the token that stands there is without itself. Deviation: what was
known before decoding is never reopened.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Rule, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import blocks, commit, windows


def wino(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    block_length: Count = 128,
    threshold: Annotated[float, Knob(0, 1)] = 0.6,
    threshold_back: Annotated[float, Knob(0, 1)] = 0.9,
    temperature: Temperature = 0.0,
) -> Decoder:
    """Wide in by `threshold`, narrow out by `threshold_back`, in one call a step.

    At most max(5, 0.7 * open) positions are committed at once, and never over 20.
    Guarantee: lossy; a probe's law knows its token through the other lanes from the
    second layer on.
    Cost: at most a call a token, of the canvas and the block once more.
    """
    wide_in = commit.threshold(threshold)

    def apply(key, row: Row, prediction):
        sure = wide_in.apply(None, key, row, prediction, ())[0]
        num_open = row.open.sum()
        most = jnp.clip((0.7 * num_open).astype(jnp.int32), 5, 20)
        return commit.best(prediction.log_prob, sure, most)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=blocks.of(model, min(block_length, max_new_tokens)),
        remask=narrow_out(threshold_back),
        window=windows.shadowed,
    )


def narrow_out(threshold_back) -> Rule:
    """Reopens what probes give less than `threshold_back`, the least likely first.

    Only on a step that committed several, and fewer than the step before committed
    (memory: int32 [], that number): n steps then fill n positions or more.
    """

    def apply(params, key, row: Row, prediction, last):
        del params, key
        is_new = row.open & ~row.masked[row.positions]
        new = jnp.zeros_like(row.masked).at[row.positions].max(is_new)
        stood = row.generated & ~row.masked & ~new
        able = row.probe & stood[row.positions]
        doubt = able & (jnp.exp(prediction.of_log_prob) < threshold_back)
        num_new = is_new.sum(dtype=jnp.int32)
        count = jnp.minimum(doubt.sum(), last - 1)
        chosen = commit.best(-prediction.of_log_prob, doubt, count)
        return chosen & (num_new > 1), num_new

    init = lambda length: jnp.full((), 30, jnp.int32)  # noqa: E731
    return Rule(init, apply, ("of_log_prob",), is_bounded=True)
