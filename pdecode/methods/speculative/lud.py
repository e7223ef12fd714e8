"""LUD: as many tokens as a model is sure of behind the next one, with nothing verified.

Sun et al., 2024, arXiv:2405.15208 (lexical unit decoding). `train.objectives.lud`
trains a model to say units at mask tokens.
"""

from typing import Annotated

import jax.numpy as jnp

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import probes
from pdecode.families import speculative
from pdecode.knobs import Count, Knob, NextModel, Temperature
from pdecode.rules import relaxed


def lud(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 4,
    threshold: Annotated[float, Knob(0, 2)] = 0.9,
    temperature: Temperature = 0.0,
) -> Decoder:
    """After the next token those that masks say with probability `threshold` at least.

    The first that is less sure ends the unit, and so does one that repeats the token
    before it. ValueError for a model without a mask id.

    Guarantee: lossy; plain decoding of the model it is given at a threshold above 1.
    Cost: 1 + 2 * num_draft query tokens a call; no other call.
    """
    if model.mask_id is None:
        raise ValueError(
            f"{model.name} has no mask id to guess at: give one that was trained with "
            "objective=lud"
        )

    def keeps(tokens, log_probs, before):
        left = jnp.concatenate([before[:, None], tokens[:, :-1]], 1)
        return (jnp.exp(log_probs) >= threshold) & (tokens != left)

    # All of a chain is accepted, so that masks stand behind its last token alone.
    sizes = range(num_draft + 1)
    counts = tuple((0,) * size + (num_draft,) for size in sizes)
    forest = probes.Forest(tuple(map(trees.chain, sizes)), counts)
    return speculative.draft_verify(
        model,
        probes.probed(model, forest, model.mask_id, keeps=keeps),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        acceptance=relaxed.always(),
    )
