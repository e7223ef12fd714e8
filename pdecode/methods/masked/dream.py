"""Dream: commits paced by a time grid, over the whole canvas.

Ye et al., 2025, arXiv:2508.15487 (generation). `alg="origin"` commits each open
position by chance; the others commit the best floor(n * (1 - s / t)), scored after
temperature, top-p and top-k, in a law that still holds the mask. Greedily, a position
whose best token is the mask spends its share and stays open, as in the authors' code.
`alg_temp` > 0 draws the positions instead. Deviations: steps whose share is zero are
skipped, not computed; above temperature 0 the mask is not drawn; the last step fills.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature, TopK, TopP
from pdecode.rules import commit


def dream(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = "origin",
    alg_temp: Annotated[float, Knob(0, 1e6, off=0)] | None = None,
    eps: Annotated[float, Knob(1e-6, 0.5)] = 1e-3,
    temperature: Temperature = 0.0,
    top_k: TopK | None = 50,
    top_p: TopP | None = None,
) -> Decoder:
    """A falling number of tokens a step, chosen by one of four algorithms.

    `steps` defaults to max_new_tokens; top_k=50 is the authors' default.
    Guarantee: lossy; with any number of steps the last one commits what is left, at
    least two positions, and "maskgit_plus" is biased throughout. "origin" is ancestral
    sampling of the linear schedule, exact as steps grow.
    Cost: at most `steps` calls of the whole canvas.
    """
    num_steps = max_new_tokens if steps is None else steps
    time = jnp.linspace(1.0, eps, num_steps + 1).astype(jnp.float32)
    share = (1 - time[1:] / time[:-1]).at[-1].set(1.0)
    undrawn = masked.undrawn(model)
    sampling = Sampling(temperature, top_k, top_p, undrawn=undrawn, is_top_p_first=True)
    scores = {
        # Of the law's own best token at temperature 0, be it the mask.
        "maskgit_plus": lambda p: jnp.exp(
            p.sampled_log_prob + commit.lead(p, temperature)
        ),
        "topk_margin": lambda p: p.sampled_margin,
        "entropy": lambda p: -p.sampled_entropy,
    }
    if alg == "origin":
        rule = commit.bernoulli(share)
    else:
        rule = commit.paced(share, scores[alg], temperature, alg_temp)
    return masked.masked_diffusion(
        model,
        rule,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        progress="schedule",
        max_steps=num_steps,
    )
