"""FreeDave: the static decode of a masked model, verified several steps at a time.

Wu & Zhang, 2025, arXiv:2510.00294. The drafts come from the last prediction, at no
cost. A block-causal model is decoded in its blocks, and its drafts are one tree over
what is final. Deviation: the tree has the block after a full one too, which the authors
begin in calls of their own. Where tokens see later ones there is nothing final: then,
for shifted models and for prompts with holes, canvases are evaluated side by side.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.families import canvas_chain, masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import blocks, schedules


def freedave(
    model: MaskedModel,
    *,
    max_new_tokens: Count,
    steps: Count | None = None,
    block_length: Count | None = None,
    draft_steps: Count = 4,
    temperature: Temperature = 0.0,
) -> Decoder:
    """LLaDA's tokens in LLaDA's order, with the same key, in fewer calls.

    `steps` must fill equally many positions each (None: one). The authors draft 4
    steps, and 8 with block models.
    Guarantee: lossy as LLaDA is, whose every canvas it returns; nothing is added.
    Cost: at most LLaDA's calls, each of `draft_steps` canvases, or of a block more than
    `draft_steps`; at best one and (steps - 1) / draft_steps.
    """
    grid = blocks.of(model, block_length)
    length = grid.length if grid.is_absolute else None
    length = length or min(block_length or max_new_tokens, max_new_tokens)
    count = 1
    if steps is not None:
        share = schedules.steps_per_block(max_new_tokens, steps, length)
        if length % share:
            raise ValueError(
                f"steps={steps} fill {length} positions unequally: give a number of "
                f"steps that divides {max_new_tokens}"
            )
        count = length // share
    return canvas_chain.canvas_chain(
        model,
        max_new_tokens=max_new_tokens,
        count=count,
        block_length=block_length,
        num_drafts=draft_steps,
        sampling=Sampling(temperature, undrawn=masked.undrawn(model)),
    )
