"""STAND: a tree out of averaged predictions in contexts of four, three or two tokens.

Song et al., 2025, arXiv:2506.04708. Deviations: children are the likeliest tokens of
the averaged law instead of Gumbel draws from it, matched with the target's own sample;
the table is a row's own and not shared by parallel answers to one prompt, so that a row
does not depend on its company; the tree is given by its widths instead of found offline
on 30 problems.
"""

from typing import Annotated

from pdecode.contracts import Decoder, Sampling
from pdecode.drafters import averaged, paced, pruned, recycling
from pdecode.families import speculative
from pdecode.knobs import (
    CallCosts,
    Count,
    DraftLength,
    NextModel,
    Size,
    Temperature,
    TopK,
    TopP,
)


def stand(
    model: NextModel,
    *,
    max_new_tokens: Count,
    widths: Annotated[tuple[int, ...], Size()] = (8, 21, 25, 15, 8, 3),
    contexts: Annotated[tuple[int, ...], Size()] = (4, 3, 2),
    num_top: Count = 10,
    num_slots: Count = 1024,
    draft_length: DraftLength = "fixed",
    call_costs: CallCosts = paced.COSTS,
    temperature: Temperature = 0.0,
    top_k: TopK | None = None,
    top_p: TopP | None = None,
) -> Decoder:
    """A static tree filled from what was predicted behind the same last tokens.

    With draft_length "auto" a draft has as many of its likeliest nodes as are worth
    their lanes at these costs of calls, and a call no lanes that no row uses.

    Guarantee: lossless; token for token plain decoding with the same seed.
    Cost: 1 + sum(widths) query tokens a call; three tables of num_slots laws a row.
    """
    sampling = Sampling(temperature, top_k, top_p)
    drafter = averaged.averaged(
        model,
        recycling.template(widths, num_top),
        num_top,
        contexts=contexts,
        num_slots=num_slots,
    )
    drafter, sizes = pruned.by_costs(drafter, draft_length, call_costs)
    return speculative.draft_verify(
        model,
        drafter,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        call_sizes=sizes,
    )
