"""ARPG: random order, groups that grow, and guidance that grows with them.

Li et al., 2025, arXiv:2503.10568. A step stores the tokens drawn last and asks for the
next group by masks at its positions, which do not see each other. The authors' two-pass
network is `models.two_pass`; any model with position queries will do. Deviation: one
order a compiled program, made by `order_seed`.
"""

from typing import Annotated, Literal

from pdecode.contracts import Decoder, Sampling
from pdecode.families import frontier
from pdecode.knobs import Count, Knob, MaskedModel, Size, Temperature, TopK, TopP
from pdecode.rules import guidance, orders


def arpg(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 64,
    group_sizes: Literal["arccos", "cosine"] = "arccos",
    order_seed: Annotated[int, Size(0)] = 0,
    guidance_scale: Annotated[float, Knob(0, 100, off=1)] | None = None,
    guidance_growth: Literal["linear", "constant"] = "linear",
    fresh: Literal["group", "causal"] = "group",
    temperature: Temperature = 1.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A random order in `steps` groups; the authors' guidance is 4 to 7.5.

    Guidance g: logits = g * cond - (g - 1) * null; "linear" grows from 1 with what is
    decided. The null call has masks for its prompt. Tokens of one group see all of it
    when they are stored ("group", as in the authors' sampler), or those before them
    ("causal", as in their training).
    Guarantee: exact at one position a group without guidance; lossy above it, by
    independence within a group.
    Cost: `steps` calls of twice the largest group, two each with guidance.
    """
    steps = min(steps, max_new_tokens)
    rank = orders.cut(
        orders.of("random", max_new_tokens, None, order_seed),
        orders.masked_sizes(max_new_tokens, steps, group_sizes),
    )
    if guidance_scale is not None:
        model = guidance.by_prompt(
            model, guidance_scale, max_new_tokens, guidance_growth == "linear"
        )
    return frontier.frontier(
        model,
        rank,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        is_fresh_causal=fresh == "causal",
    )
