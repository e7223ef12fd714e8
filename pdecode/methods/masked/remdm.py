"""ReMDM: ancestral sampling that may also reopen what it filled.

Wang et al., 2025, arXiv:2503.00307. `variant` sets sigma, the reopening probability:
"cap" min(eta, bound); "rescale" eta * bound; "conf" bound weighted by the softmax of
minus each token's probability at commit; "loop" runs plainly to alpha = 0.9, holds it
there while reopening with eta, and then finishes.
"""

from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature, TopP
from pdecode.rules import commit, remask, schedules


def remdm(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count = 128,
    variant: Literal["cap", "rescale", "conf", "loop"] = "cap",
    eta: Annotated[float, Knob(0, 1)] = 0.02,
    temperature: Temperature = 1.0,
    top_p: TopP | None = 0.9,
) -> Decoder:
    """Ancestral sampling with remasking: more steps keep helping.

    Guarantee: lossy, as MDLM is; each sigma keeps the law of how many are masked.
    Cost: `steps` calls of the whole canvas.
    """
    plan = (
        _loop(steps, eta) if variant == "loop" else schedules.ancestral("linear", steps)
    )
    bound = schedules.max_remask(plan)
    if variant == "conf":
        reopen = remask.by_recorded_confidence(bound)
    else:
        sigma = {
            "cap": lambda: jnp.minimum(eta, bound),
            "rescale": lambda: eta * bound,
            "loop": lambda: plan.remask,
        }[variant]()
        plan = plan._replace(remask=sigma)
        reopen = remask.bernoulli(sigma)
    return masked.masked_diffusion(
        model,
        commit.bernoulli(plan.commit),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p=top_p),
        remask=reopen,
        progress="schedule",
        max_steps=steps,
    )


def _loop(steps: int, eta) -> schedules.Ancestral:
    """The paper's loop: t_on 0.55, t_off 0.05, alpha held at 0.9 in between."""
    on, off, held = 0.55, 0.05, 0.9
    time = np.linspace(1, 0, steps + 1)
    level = np.interp(time, [0, off, on, 1], [1, held, held, 0]).astype(np.float32)
    inside = (time[1:] >= off) & (time[:-1] <= on)
    sigma = jnp.where(jnp.asarray(inside), eta, 0.0)
    plan = schedules.Ancestral(jnp.asarray(level[:-1]), jnp.asarray(level[1:]), sigma)
    return plan._replace(remask=jnp.minimum(sigma, schedules.max_remask(plan)))
