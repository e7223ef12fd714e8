"""LPD: groups near what is decided and far from each other, queried together.

Zhang et al., 2025, arXiv:2507.01957. A step is one call of the tokens drawn last and of
the next group's queries, which see each other. Deviation: one order a compiled program,
made by `order_seed`, in place of the authors' list of them.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.families import frontier
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import guidance, orders


def lpd(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 20,
    row_length: Count | None = None,
    repulsion: Annotated[int, Size(0)] = 2,
    order_seed: Annotated[int, Size(0)] = 0,
    guidance_scale: Annotated[float, Knob(0, 100, off=1)] | None = None,
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """`steps` groups whose sizes grow with a cosine, on a grid of `row_length` columns.

    Guidance g: logits = g * cond - (g - 1) * null, g growing from 1 with what is
    decided; the null call has masks for its prompt.
    Guarantee: exact at one position a group without guidance; lossy above it, by
    independence within a group.
    Cost: `steps` calls of twice the largest group, two each with guidance.
    """
    width = max_new_tokens if row_length is None else row_length
    steps = min(steps, max_new_tokens)
    sizes = orders.group_sizes(max_new_tokens, steps)
    height = -(-max_new_tokens // width)
    rank = orders.local(
        height,
        width,
        sizes,
        seed=order_seed,
        repulsion=repulsion,
        total=max_new_tokens,
    )
    if guidance_scale is not None:
        model = guidance.by_prompt(model, guidance_scale, max_new_tokens)
    return frontier.frontier(
        model,
        rank,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        is_group_seen=True,
    )
