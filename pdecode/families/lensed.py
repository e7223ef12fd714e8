"""A method under lenses: logit processing of its target, and of its drafter alike."""

import functools
from collections.abc import Callable
from typing import Any

from pdecode.contracts import Decoder, Drafter, Lens
from pdecode.families import speculative

__all__ = ["lensed"]


@functools.lru_cache
def lensed(method: Callable, lenses: tuple[Lens, ...]) -> Callable:
    """`method`, of the same signature, with `lenses` in front of every law it reads.

    The target's, and that of a draft model or of a tree that one grows; what drafts
    otherwise (copies, tables, heads, layers) is judged by the target's law alone, and
    is as lossless. What it makes raises ValueError where it is no decoder of
    `draft_verify` as that makes them, and for drafters whose law is told from the
    target's. `pearl`, `quantspec`, `spec_pv`, `hidden_transfer` and `early_exit` draft
    and verify in steps of their own, and are refused.
    """

    @functools.wraps(method)
    def build(*models, **settings) -> Decoder:
        decoder = method(*models, **settings)
        plan = getattr(decoder.init, "args", (None,))[0]
        is_ours = getattr(decoder.step, "func", None) is speculative.step
        if not isinstance(plan, speculative.Plan) or not is_ours:
            name = getattr(method, "__name__", repr(method))
            raise ValueError(
                f"{name} takes no lenses (penalties, bans, a grammar): use "
                "autoregressive or another method of the draft-and-verify family whose "
                "step is the family's own (pearl, quantspec, spec_pv, hidden_transfer "
                "and early_exit have theirs)"
            )
        rule = "match" if plan.acceptance is None else plan.acceptance
        made = speculative.checked(
            plan.model, _drafter(plan.drafter, lenses), plan.max_new_tokens,
            plan.sampling, rule, lenses,
        )  # fmt: skip
        plan = made._replace(call_sizes=plan.call_sizes)
        return decoder._replace(
            init=functools.partial(speculative.init, plan),
            step=functools.partial(speculative.step, plan),
            done=functools.partial(speculative.done, plan),
            output=functools.partial(speculative.output, plan),
        )

    return build


def _drafter(drafter: Drafter, lenses: tuple[Lens, ...]) -> Drafter:
    """`drafter` with `lenses` on the law that it drafts from, if it has one of its own.

    That is told from the plan that its functions are of: it has `lenses`, or another
    drafter that it chooses from.
    """
    plan: Any = getattr(drafter.propose, "args", (None,))[0]
    if hasattr(plan, "lenses"):
        new = plan._replace(lenses=lenses)
    elif isinstance(getattr(plan, "drafter", None), Drafter):
        new = plan._replace(drafter=_drafter(plan.drafter, lenses))
    else:
        return drafter

    def of_new(function: Any) -> Callable:
        is_its = getattr(function, "args", (None,))[0] is plan
        return functools.partial(function.func, new) if is_its else function

    return drafter._replace(
        init=of_new(drafter.init),
        propose=of_new(drafter.propose),
        observe=of_new(drafter.observe),
    )
