"""MTP: modules that a model was given to predict further tokens draft a chain.

DeepSeek-AI, 2024, arXiv:2412.19437 (sequential modules, Gloeckle et al., 2024,
arXiv:2404.19737, before it with parallel ones). The paper uses one module.
"""

from pdecode.contracts import Decoder, DraftModules, Sampling
from pdecode.drafters import modules as module_drafters
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def mtp(
    model: NextModel,
    modules: DraftModules,
    *,
    max_new_tokens: Count,
    num_draft: Count = 1,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`num_draft` modules draft a token each, the best that follows the one before.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; a call of each module, 2 * num_draft lanes.
    """
    return speculative.draft_verify(
        model,
        module_drafters.chain(model, modules, num_draft),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
