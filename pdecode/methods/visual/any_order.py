"""Any-order decoding by position queries, in a fixed order of a grid.

The frontier of ARPG (Li et al., 2025, arXiv:2503.10568) under orders of others: raster,
random, Halton (Besnier et al., 2025), a spiral, antidiagonals, and
grids that double. Fresh tokens are encoded with the next group's queries in one call.
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
    order: Literal[
        "raster", "random", "halton", "spiral", "diagonal", "hierarchical"
    ] = "random",
    order_seed: Annotated[int, Size(0)] = 0,
    row_length: Count | None = None,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A fixed order of a grid of `row_length` columns, in `steps` growing groups.

    `steps` defaults to one position a group; "diagonal" and "hierarchical" are groups
    by themselves.
    Guarantee: exact at one position a group; lossy above it, by independence within a
    group.
    Cost: a call a group, of twice the largest.
    """
    rank = orders.of(order, max_new_tokens, row_length, order_seed)
    is_grouped = order in ("diagonal", "hierarchical")
    if steps is not None:
        if order == "raster" and steps != max_new_tokens:
            raise ValueError(
                f"raster order takes one position a step, but steps={steps}: leave it "
                "out or use order='random'"
            )
        if is_grouped:
            raise ValueError(f"{order=} has groups of its own: leave out steps={steps}")
        rank = orders.cut(rank, orders.group_sizes(max_new_tokens, steps))
    return frontier.frontier(
        model,
        rank,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
    )
