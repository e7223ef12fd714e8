"""GenMol: one token a step by noisy confidence, guided away from a poorer context.

Lee et al., 2025, arXiv:2501.06158. Molecular context guidance mixes in the law under a
context of which a part is hidden. Remasking a fragment is a prompt with holes
(`prompts.reopened`). Deviation: which places are hidden is a fixed random function of
the place and of how many tokens are known.
"""

from typing import Annotated

from pdecode import rng
from pdecode.contracts import Decoder, Row, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, Knob, MaskedModel, Temperature
from pdecode.rules import commit, guidance


def genmol(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    num_tokens: Count = 1,
    randomness: Annotated[float, Knob(0, 1e6)] = 2.0,
    guidance_scale: Annotated[float, Knob(0, 100, off=1)] | None = None,
    gamma: Annotated[float, Knob(0, 1)] = 0.3,
    temperature: Temperature = 1.0,
) -> Decoder:
    """The `num_tokens` best of log-probability plus Gumbel noise that fades away.

    `guidance_scale` w: logits = w * full + (1 - w) * poor, a fraction `gamma` of the
    known tokens being hidden from the poor one. The paper's w is 2.
    Guarantee: lossy; biased even at one token a step, by ranking on the drawn token.
    Cost: a call of the whole canvas a step, two with guidance.
    """
    if guidance_scale is not None and model.mask_id is not None:
        poor = guidance.hide_some(model.mask_id, gamma)
        model = guidance.guided(model, guidance_scale - 1, poor)

    def apply(key, row: Row, prediction):
        left = row.open.sum() / row.num_initial
        noise = rng.gumbel(rng.at(key, row.positions), 1)[..., 0]
        score = prediction.log_prob + randomness * left * noise
        return commit.best(score, row.open, num_tokens)

    return masked.masked_diffusion(
        model,
        commit.stateless(apply),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
    )
