"""DiffusionGemma's sampler: canvases of uniform noise, revised until they are settled.

After google/diffusiongemma (2026; no paper); the acceptance rule is the entropy bound
of Ben-Hamu et al., 2025, arXiv:2505.24857. Each canvas starts as random tokens. A step
denoises all of it at a falling temperature, keeps the sampled tokens of the surest
positions and redraws all others at random, so nothing is final until the canvas is.
Deviations from the published code: the result is cut at `max_new_tokens`, and a row
that is done stops instead of denoising along with its batch.
"""

from typing import Annotated

from pdecode.contracts import Decoder
from pdecode.families import canvases
from pdecode.knobs import Count, Knob, Size, UniformModel


def diffusion_gemma(
    model: UniformModel,
    *,
    max_new_tokens: Count,
    max_denoising_steps: Count = 48,
    entropy_bound: Annotated[float, Knob(0, 1e6)] = 0.1,
    t_max: Annotated[float, Knob(1e-3, 100)] = 0.8,
    t_min: Annotated[float, Knob(1e-3, 100)] = 0.4,
    stability_threshold: Annotated[int, Size(0)] = 1,
    confidence_threshold: Annotated[float, Knob(0, 1e6)] = 0.005,
) -> Decoder:
    """Entropy-bounded acceptance with renoising, canvas after canvas.

    A canvas ends when its argmax equals the last `stability_threshold` ones and its
    mean entropy is below `confidence_threshold` nats, or after `max_denoising_steps`.
    What it returns is the last argmax canvas, not the sampled one.
    Guarantee: lossy.
    Cost: a call of the canvas a step, and one more to encode each canvas but the last.
    """
    return canvases.canvases(
        model,
        canvases.UNIFORM,
        max_new_tokens=max_new_tokens,
        max_denoising_steps=max_denoising_steps,
        entropy_bound=entropy_bound,
        t_max=t_max,
        t_min=t_min,
        stability_threshold=stability_threshold,
        confidence_threshold=confidence_threshold,
    )
