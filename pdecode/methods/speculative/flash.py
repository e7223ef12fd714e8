"""FLASH: a semi-autoregressive layer drafts behind an image of which it keeps little.

Wang et al., 2025, arXiv:2505.12728 (SpecFLASH). The layer is that of
`pdecode.models.visual_layers` with several features an answer; the image is condensed
by learned queries. Deviation: drafts are chains, where the paper has static trees.
"""

from pdecode.contracts import Decoder, DraftLayer, Sampling
from pdecode.drafters import features
from pdecode.families import speculative
from pdecode.knobs import Count, NextModel, Temperature, TopK, TopP


def flash(
    model: NextModel,
    layer: DraftLayer,
    *,
    max_new_tokens: Count,
    num_blocks: Count = 2,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A chain of `num_blocks` answers, each as many best tokens as it has features.

    Tokens of one answer do not see each other; an answer sees those before it.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + num_blocks * layer.num_ahead query tokens a call; num_blocks calls of the
    layer.
    """
    sampling = Sampling(temperature, top_k, top_p)
    return speculative.draft_verify(
        model,
        features.semi_chain(model, layer, num_blocks, sampling),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
