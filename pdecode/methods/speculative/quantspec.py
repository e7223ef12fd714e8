"""QuantSpec: the target drafts for itself with four bits of its cache and weights.

2025, arXiv:2502.10424. Deviations: a draft ends where a group of the cache does, so
that what the target reads depends on the position alone; weights share a grid a column.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import narrow
from pdecode.families import self_drafted, speculative
from pdecode.knobs import Count, NextModel, Size, Temperature, TopK, TopP
from pdecode.models import quantized
from pdecode.rules import accept


def quantspec(
    model: NextModel,
    *,
    max_new_tokens: Count,
    num_draft: Count = 4,
    group: Annotated[int, Size(2)] = 128,
    acceptance: Literal["rejection", "coupled"] = "rejection",
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Chains drafted on the upper half of an 8-bit cache, which the target reads whole.

    Guarantee: lossless relative to the model over the 8-bit cache, which is
    `models.quantized.quantized(model, group)`, not to the model as it came; in
    distribution, greedy-identical at temperature 0, and with "coupled" token for token
    its plain decoding with the same seed.
    Cost: 1 + num_draft query tokens a call; num_draft calls in 4 bits; no other cache.
    """
    if num_draft >= group:
        raise ValueError(
            f"{num_draft=} tokens and the one before them must fit a {group=}: draft "
            "fewer tokens, or make groups longer"
        )
    sampling = Sampling(temperature, top_k, top_p)
    is_coupled = acceptance == "coupled"
    draws = "coupled" if is_coupled else "with_replacement"
    return self_drafted.self_drafted(
        speculative.draft_verify(
            quantized.quantized(model, group),
            narrow.narrow(model, num_draft, sampling, group, draws=draws),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            acceptance=accept.match
            if is_coupled
            else accept.by_node(accept.rejection()),
        )
    )
