"""Dream: commits paced by a time grid, over the whole canvas.

Ye et al., 2025, arXiv:2508.15487 (generation). `alg="origin"` commits each open
position by chance; the others commit the best floor(n * (1 - s / t)), scored after
temperature and top-p. `alg_temp` > 0 draws the positions instead. Deviation: steps
whose share is zero are skipped, not computed.
"""

from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdecode import commit, masked, rng
from pdecode.contracts import Decoder, Model, Row, Rule, Sampling
from pdecode.knobs import Knob, Size


def dream(
    model: Model,
    *,
    max_new_tokens: Annotated[int, Size()],
    steps: Annotated[int, Size()] | None = None,
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = "origin",
    alg_temp: Annotated[float, Knob(0, 1e6, off=0)] | None = None,
    eps: Annotated[float, Knob(1e-6, 0.5)] = 1e-3,
    temperature: Annotated[float, Knob(0, 100)] = 0.0,
    top_k: Annotated[int, Knob(1, 2**31 - 1)] | None = None,
    top_p: Annotated[float, Knob(0, 1)] | None = None,
) -> Decoder:
    """A falling number of tokens a step, chosen by one of four algorithms.

    `steps` defaults to max_new_tokens. Guarantee: lossy; with any number of steps the
    last one commits what is left, at least two positions, and "maskgit_plus" is biased
    throughout. "origin" is ancestral sampling of the linear schedule, exact as steps
    grow.
    Cost: at most `steps` calls of the whole canvas.
    """
    num_steps = max_new_tokens if steps is None else steps
    time = jnp.linspace(1.0, eps, num_steps + 1).astype(jnp.float32)
    share = (1 - time[1:] / time[:-1]).at[-1].set(1.0)
    sampling = Sampling(temperature, top_k, top_p)
    by = {
        "origin": None,
        "maskgit_plus": commit.Order(lambda k, r, p: jnp.exp(p.sampled_log_prob), ()),
        "topk_margin": commit.Order(
            lambda k, r, p: p.sampled_margin, ("sampled_margin",)
        ),
        "entropy": commit.Order(
            lambda k, r, p: -p.sampled_entropy, ("sampled_entropy",)
        ),
    }[alg]
    return masked.masked_diffusion(
        model,
        commit.bernoulli(share) if by is None else _paced(share, by, alg_temp),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        progress="schedule",
        max_steps=num_steps,
    )


def _paced(share: Array, by: commit.Order, alg_temp) -> Rule:
    """The best floor(open * share[k]) positions; k skips ahead over empty shares."""
    num_steps = share.shape[0]

    def apply(key, row: Row, prediction, next_step):
        num_open = row.open.sum()
        counts = jnp.floor(num_open * share).astype(jnp.int32)
        ready = (counts > 0) & (jnp.arange(num_steps) >= next_step)
        now = jnp.where(ready.any(), jnp.argmax(ready), num_steps - 1)
        score = by.score(key, row, prediction)
        if alg_temp is not None:
            places = rng.at(key, row.positions)
            # Gumbel top-n draws n positions without replacement from a softmax.
            score = score / alg_temp + rng.gumbel(places, 1)[..., 0]
        return commit.best(score, row.open, counts[now]), now.astype(jnp.int32) + 1

    return Rule(lambda length: np.zeros((), np.int32), apply, by.wants)
