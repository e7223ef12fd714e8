"""The forward pass of a run: what is trained is what is decoded.

Hidden states, taps, extra inputs and visibility are those of `Model.apply`; so is the
shift of a model that reads its answers one slot to the left.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pdecode.contracts import Output, Params, Visibility
from pdecode.models import transformer
from pdecode.models.config import Config
from pdecode.train import plain


class Pass(NamedTuple):
    """A model and how it is run; hashable, so that it is a static argument."""

    model: Config
    forward: str = "transformer"
    remat: bool = False
    matmul_dtype: str = "float32"


def of_run(config, model: Config | None = None) -> Pass:
    """The pass of a `TrainConfig`, for its model or for a frozen one of another size.

    Raises ValueError for a model that the plain pass does not do.
    """
    model = config.model if model is None else model
    if config.forward == "plain":
        plain.check(model)
    return Pass(model, config.forward, config.remat, config.matmul_dtype)


def of_decoding(model: Config) -> Pass:
    """The pass that figures are measured with, which is the decoders' own."""
    return Pass(model)


def run(
    how: Pass,
    params: Params,
    tokens: Array,  # int32 [B, L]
    segments: Array | None = None,  # int32 [B, L]
    *,
    positions: Array | None = None,  # int32 [B, L]
    visible: Visibility | None = None,
    extra: Array | None = None,  # [B, L, E]
    has_extra: Array | None = None,  # bool [B, L]
) -> Output:
    """Hidden states [B, L, E] of whole rows, and taps; as `transformer.forward`.

    Raises ValueError where the plain pass is asked for what it does not do.
    """
    if how.forward == "plain":
        others = (segments, positions, visible, extra, has_extra)
        if any(each is not None for each in others):
            raise ValueError(
                "the plain pass knows whole rows only; use forward='transformer'"
            )
        hidden = plain.forward(how.model, params, tokens, how.matmul_dtype)
        return _shifted(how.model, Output(hidden))
    model = how.model
    if how.matmul_dtype == "bfloat16":
        model = dataclasses.replace(model, dtype="bfloat16")
    output = transformer.forward(
        model,
        params,
        tokens,
        positions,
        segments,
        visible=visible,
        extra=extra,
        has_extra=has_extra,
        train=how.remat,
    )
    return _shifted(model, output)


def hidden(how: Pass, params: Params, tokens: Array) -> Array:
    """Hidden states [B, L, E] of whole rows."""
    return run(how, params, tokens).hidden


def _shifted(model: Config, output: Output) -> Output:
    if not model.shift:
        return output
    # The state that predicts slot s is that of slot s - 1; slot 0 reads itself.
    moved = jnp.concatenate([output.hidden[:, :1], output.hidden[:, :-1]], axis=1)
    return output._replace(hidden=moved)
