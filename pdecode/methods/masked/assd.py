"""ASSD: an any-subset model drafts in parallel and verifies by its own chain rule.

Guo & Ermon, 2025, arXiv:2504.20456. Open positions are decided left to right, so that
infilling is a prompt with holes.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.families import any_subset
from pdecode.knobs import Count, MaskedModel, Temperature, TopK, TopP
from pdecode.rules import accept


def assd(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 5,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Draft `num_draft` positions at once, keep what the chain rule would have drawn.

    Guarantee: exact, the model's law of one position after another, left to right.
    Cost: two calls for two tokens or more, one for a last one: at most a call a token
    committed.
    """
    return any_subset.any_subset(
        model,
        max_new_tokens=max_new_tokens,
        num_draft=num_draft,
        rule=accept.rejection(),
        sampling=Sampling(temperature, top_k, top_p),
    )
