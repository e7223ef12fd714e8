"""Any-order decoding by position queries, in raster or random order.

The decoding of ARPG (Li et al., 2025, arXiv:2503.10568): fresh tokens are encoded with
the next group's queries in one call, and group sizes grow with a cosine.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import frontier
from pdecode.knobs import Count, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import orders


def any_order(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    order: Literal["raster", "random"] = "random",
    order_seed: Annotated[int, Size(0)] = 0,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A fixed order, `steps` groups (default: one position a group; raster always).

    Guarantee: exact at one position a group; lossy above it, by independence within a
    group.
    Cost: `steps` calls of twice the largest group.
    """
    if order == "raster":
        if steps not in (None, max_new_tokens):
            raise ValueError(
                f"raster order takes one position a step, but steps={steps}: leave it "
                "out or use order='random'"
            )
        rank = orders.raster(1, max_new_tokens)
    else:
        groups = max_new_tokens if steps is None else steps
        rank = orders.shuffled(1, max_new_tokens, seed=order_seed, num_groups=groups)
    return frontier.frontier(
        model,
        rank,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
