"""Distilled decoding: noise in, all tokens out, in one or two passes.

Liu et al., 2024, arXiv:2412.17153. The flow of `rules.flows` makes of an autoregressive
model's draw a function of noise; the student (`models.noised`, the objective of this
name) was trained to tell that function at once. Deviation: no pass of the teacher in
between, so that nothing is corrected.
"""

from typing import Annotated

import numpy as np

from pdecode.contracts import Decoder, Prompt, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, NoisedModel, Size, Temperature
from pdecode.rules import blocks, commit


def distilled_decoding(
    model: NoisedModel,
    *,
    max_new_tokens: Count,
    starts: Annotated[tuple[int, ...], Size(0)] = (0,),
    temperature: Temperature = 0.0,
) -> Decoder:
    """A pass from each of `starts`, the student's own, up to the next one.

    Each pass reads the tokens before it and the row's noise from there on. At
    temperature 0 a token is the likeliest, as the teacher's is one; above, what the
    student is unsure of is drawn. ValueError for starts that do not rise from 0, and
    for a model that reads no noise.
    Guarantee: lossy, by what the student got wrong; of a perfect one the joint law is
    the teacher's, in one pass.
    Cost: as many calls as `starts`, of the whole canvas.
    """
    from pdecode.models import noised  # networks are slow to import

    ends = (*starts[1:], max_new_tokens)
    if starts[:1] != (0,) or any(a >= b for a, b in zip(starts, ends)):
        raise ValueError(f"{starts=} must rise from 0, below {max_new_tokens=}")
    inner = masked.masked_diffusion(
        noised.told(model),
        commit.stateless(lambda key, row, prediction: row.open),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        blocks=blocks.sizes(np.diff((*starts, max_new_tokens)).tolist()),
    )

    def init(params, keys, prompt: Prompt):
        return inner.init({**params, "model": (params["model"], keys)}, keys, prompt)

    def step(params, keys, state):
        return inner.step({**params, "model": (params["model"], keys)}, keys, state)

    return inner._replace(init=init, step=step)
