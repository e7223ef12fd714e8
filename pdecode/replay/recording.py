"""What every step of a decode did, told from the results between steps."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def rows(steps: Iterable[Any], tokenizer: Any) -> list[dict[str, Any]]:
    """{"events", "proposed"} of every row, as `replay.record.Trace` has them.

    `steps` are `programs.Progress` records as numpy arrays, one a step.
    """
    events: list[list[list]] = []
    proposed: list[list[int]] = []
    before = last = None
    for number, now in enumerate(steps):
        made = now.generation
        if before is None:
            blank = np.zeros_like(made.committed)
            before, last = (made.tokens, blank), np.zeros_like(now.stats.num_proposed)
            events = [[] for _ in made.start]
            proposed = [[] for _ in made.start]
        tokens, committed = before
        filled = made.committed & ~committed
        reopened = committed & ~made.committed
        revised = made.committed & committed & (made.tokens != tokens)
        for kind, where in (
            ("reopened", reopened), ("filled", filled), ("revised", revised)
        ):  # fmt: skip
            for row, place in np.argwhere(where).tolist():
                offset = place - int(made.start[row])
                if offset < 0:  # a hole of the prompt
                    continue
                text = tokenizer.decode([int(made.tokens[row, place])])
                prob = round(float(np.exp(made.log_probs[row, place])), 5)
                events[row].append([number, offset, text, prob, kind])
        for row, count in enumerate((now.stats.num_proposed - last).tolist()):
            proposed[row].append(count)
        before, last = (made.tokens, made.committed), now.stats.num_proposed
    return [
        {"events": each, "proposed": counts} for each, counts in zip(events, proposed)
    ]
