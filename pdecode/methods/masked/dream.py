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
import numpy as np
from jax import Array

from pdecode import rng
from pdecode.contracts import Decoder, Prediction, Row, Rule, Sampling
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
        "maskgit_plus": lambda p: jnp.exp(p.sampled_log_prob + _lead(p, temperature)),
        "topk_margin": lambda p: p.sampled_margin,
        "entropy": lambda p: -p.sampled_entropy,
    }
    if alg == "origin":
        rule = commit.bernoulli(share)
    else:
        rule = _paced(share, scores[alg], temperature, alg_temp)
    return masked.masked_diffusion(
        model,
        rule,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        progress="schedule",
        max_steps=num_steps,
    )


def _lead(p: Prediction, temperature) -> Array:
    """How far the law's best token is above the one drawn: > 0 if that is the mask."""
    return jnp.where(temperature > 0, 0.0, p.max_log_prob - p.log_prob)


def _paced(share: Array, score_of, temperature, alg_temp) -> Rule:
    """The best floor(open * share[k]) positions; k skips ahead over empty shares."""
    num_steps = share.shape[0]

    def apply(params, key, row: Row, prediction, next_step):
        del params
        num_open = row.open.sum()
        counts = jnp.floor(num_open * share).astype(jnp.int32)
        ready = (counts > 0) & (jnp.arange(num_steps) >= next_step)
        now = jnp.where(ready.any(), jnp.argmax(ready), num_steps - 1)
        score = score_of(prediction)
        if alg_temp is not None:
            places = rng.at(key, row.positions)
            # Gumbel top-n draws n positions without replacement from a softmax.
            score = score / alg_temp + rng.gumbel(places, 1)[..., 0]
        chosen = commit.best(score, row.open, counts[now])
        chosen &= _lead(prediction, temperature) <= 0
        return chosen, now.astype(jnp.int32) + 1

    wants = ("max_log_prob", "sampled_margin", "sampled_entropy")
    return Rule(lambda length: np.zeros((), np.int32), apply, wants)
