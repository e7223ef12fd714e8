"""A guard that watches a masked decode and may end a row, for those who defend.

Wen et al., 2025, arXiv:2507.11097 (DIJA) show that text pinned behind masks leaves a
model no place to refuse: what it has learned about first tokens is never asked. The
guard is asked after every step, as a later commit can change what was said;
`prompts.pinned_behind_holes` tells which prompts are of that kind.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Guard, Sampling
from pdecode.families import masked, masked_guards
from pdecode.knobs import Count, MaskedModel, Size, Temperature
from pdecode.rules import blocks, commit


def audited(
    model: MaskedModel,
    guard: Guard,
    *,
    max_new_tokens: Count,
    refusal_ids: Annotated[tuple[int, ...], Size(0)],
    steps: Count | None = None,
    block_length: Count | None = None,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's sampler; a row that the guard ends says `refusal_ids` and nothing else.

    Such a row has stopped_by "vetoed": holes of its prompt hold the last refusal id.
    Guarantee: lossy, as the sampler is; a guard that never fires changes nothing.
    Cost: `steps` calls of the whole canvas, and the guard's own work each step.
    """
    grid = blocks.of(model, block_length)
    decoder = masked.masked_diffusion(
        model,
        commit.shared(commit.order("low_confidence"), max_new_tokens, steps, grid),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
        blocks=grid,
    )
    return masked_guards.guarded(decoder, guard, refusal_ids, model.eos_ids)
