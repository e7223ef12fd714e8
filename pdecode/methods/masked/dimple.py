"""Dimple's confident decoding: all that is sure, else as many as a schedule says.

Yu, Ma, Wang, 2025, arXiv:2505.16990. When nothing passes, the next time of the grid
that frees a position sets how many are filled, best first. The published code compares
the threshold with the score of the algorithm chosen, so with "entropy" (a score below
zero) it never passes; the same here. Deviation: the mask is not in the law.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature, TopK, TopP
from pdecode.rules import commit

ALGORITHMS = {
    "maskgit_plus": "low_confidence",
    "topk_margin": "margin",
    "entropy": "entropy",
    "origin": "random",
    "autoregressive": "sequential",
}


def dimple(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    alg: Literal[
        "maskgit_plus", "topk_margin", "entropy", "origin", "autoregressive"
    ] = "maskgit_plus",
    alg_p_threshold: Annotated[float, Knob(0, 2)] = 0.95,
    eps: Annotated[float, Knob(1e-6, 0.5)] = 1e-3,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """Commit every position above `alg_p_threshold`; if none is, the schedule's share.

    `steps` defaults to max_new_tokens. The score is of the law before temperature and
    filters, for "origin" and "autoregressive" the drawn token's probability.
    Guarantee: lossy; above 1 `alg_p_threshold` leaves the schedule alone.
    Cost: at most `steps` calls of the whole canvas.
    """
    num_steps = max_new_tokens if steps is None else steps
    time = jnp.linspace(1.0, eps, num_steps + 1).astype(jnp.float32)
    by = commit.order(ALGORITHMS[alg])

    def apply(key, row: Row, prediction):
        ranked = by.score(key, row, prediction)
        score = ranked if alg in ("topk_margin", "entropy") else None
        score = jnp.exp(prediction.log_prob) if score is None else score
        is_sure = row.open & (score > alg_p_threshold)
        num_open = row.open.sum()
        counts = scheduled(num_open, num_open / row.num_initial, time, row.turn)
        planned = commit.best(ranked, row.open, counts)
        return jnp.where(is_sure.any(), is_sure, planned)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply, by.wants),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        max_steps=num_steps,
    )


def scheduled(num_open, now, time, turn):
    """floor(num_open * (1 - s / now)) at the first later time s that makes it 1."""
    place = jnp.arange(time.shape[0])
    count = jnp.floor(num_open * (1 - time / now)).astype(jnp.int32)
    count = jnp.where(place == time.shape[0] - 1, num_open, count)
    usable = (place > turn) & (time < now) & (count >= 1)
    usable |= place == time.shape[0] - 1
    return count[jnp.argmax(usable)]
