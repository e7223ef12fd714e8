"""SPACE: a model that was trained to guess at mask tokens drafts in its verifying call.

Yi et al., 2024, arXiv:2402.11809. `train.objectives.space` trains it; of any other
model the guesses are worth nothing, and its tokens are its own all the same.
"""

from pdecode import trees
from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import probes
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def space(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A chain of what the masks behind the last accepted token said, with masks behind
    each of its tokens and behind the root.

    ValueError for a model without a mask id.

    Guarantee: lossless, relative to the model it is given, which training has changed;
    token for token its plain decoding with the same seed, drawn tokens too (the
    released code draws another law behind a refusal).
    Cost: 1 + num_draft * (num_draft + 2) query tokens a call; no other call.
    """
    if model.mask_id is None:
        raise ValueError(
            f"{model.name} has no mask id to guess at: give one that was trained with "
            "objective=space"
        )
    forest = probes.full(trees.chain(num_draft))
    return speculative.draft_verify(
        model,
        probes.probed(model, forest, model.mask_id),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
