"""Dream: commits paced by a time grid, over the whole canvas or block by block.

Ye et al., 2025, arXiv:2508.15487 (generation). `alg="origin"` commits each open
position by chance; the others commit the best floor(n * (1 - s / t)), scored after
temperature, top-p and top-k, in a law that still holds the mask. Greedily, a position
whose best token is the mask spends its share and stays open, as in the authors' code.
`alg_temp` > 0 draws the positions instead. Blocks and "confidence_threshold" are those
of Fast-dLLM's port, arXiv:2505.22618. Deviations: steps of no share are skipped; above
temperature 0 the mask is not drawn; the last step fills; a block's first one waits.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature, TopK, TopP
from pdecode.rules import blocks, commit, schedules


def dream(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    alg: Literal[
        "origin", "maskgit_plus", "topk_margin", "entropy", "confidence_threshold"
    ] = "origin",
    alg_temp: Annotated[float, Knob(0, 1e6, off=0)] | None = None,
    threshold: Annotated[float, Knob(0, 1)] = 0.9,
    eps: Annotated[float, Knob(1e-6, 0.5)] = 1e-3,
    temperature: Temperature = 0.0,
    top_k: TopK | None = 50,
    top_p: TopP | None = None,
) -> Decoder:
    """A falling number of tokens a step, chosen by one of five algorithms.

    `steps` defaults to max_new_tokens, shared by the blocks; top_k=50 is the authors'.
    "confidence_threshold" has no schedule: `threshold` is of the filtered law.
    Guarantee: lossy; with any number of steps the last one commits what is left, at
    least two positions, and "maskgit_plus" is biased throughout. "origin" is ancestral
    sampling of the linear schedule, exact as steps grow.
    Cost: at most `steps` calls of the whole canvas.
    """
    num_steps = steps or max_new_tokens
    if alg == "origin" and block_length is not None:
        raise ValueError(f"{alg=} paces the whole canvas: leave {block_length=} out")
    length = block_length or max_new_tokens
    per_block = schedules.steps_per_block(max_new_tokens, num_steps, length)
    time = jnp.linspace(1.0, eps, per_block + 1).astype(jnp.float32)
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
    is_paced = alg != "confidence_threshold"
    if alg == "origin":
        rule = commit.bernoulli(share)
    elif is_paced:
        rule = commit.paced(share, scores[alg], temperature, alg_temp)
    else:
        score, wants = lambda key, row, p: p.sampled_log_prob, ("sampled_log_prob",)
        rule = commit.above(commit.Order(score, wants, False), jnp.log(threshold))
    return masked.masked_diffusion(
        model,
        rule,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        blocks=blocks.of(model, block_length),
        progress="schedule" if is_paced else "force",
        max_steps=num_steps if is_paced else None,
    )
