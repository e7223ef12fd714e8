"""Commit, remask and edit rules: their exact law, and why it is what it is."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pdecode import decode
from pdecode.checks import acceptance, canvas, runs, toys
from pdecode.checks.report import CLOSE, Finding, Report, string
from pdecode.contracts import Decoder, Model, Rule, Sampling
from pdecode.families import masked
from pdecode.rules import commit

USES = ("commit", "remask", "edit")
MOST_STEPS = 48  # of a remask rule without a bound of its own
SIZES = ((2, 2), (2, 3), (3, 3))  # (tokens, positions), the smallest first


def report(
    make: Callable[..., Rule], knobs: dict, name: str, use: str, params: dict
) -> Report:
    """What `make(**knobs)` does to the joint when it is used as a `use` rule."""
    rule = make(**knobs)
    acceptance.check_role(rule.role, params, name)

    def build(**traced) -> Decoder:
        return decoder_of(toys.MASKED, make(**traced), use, toys.NEW)

    tried = runs.Tried(build, knobs, {"model": toys.LAW, **params})
    seen = runs.of(tried)
    found = list(seen.findings)
    if use == "commit":
        found.append(progresses(rule, params))
    elif use == "remask" and not rule.is_bounded:
        found.append(settles(seen.stats))

    def sized(vocab: int, new: int) -> Decoder:
        model = canvas.model_of(vocab, new, toys.MASKED)
        return decoder_of(model, rule, use, new)

    walks, one = law(sized, params, use)
    found.append(law_finding(walks, one, use))
    claim = "exact at one token a step" if rule.is_exact else "lossy"
    is_true = not rule.is_exact or walks[-1].variation < CLOSE
    return Report(name, f"{use} rule", tuple(found), claim, is_true)


def decoder_of(model: Model, rule: Rule, use: str, new: int) -> Decoder:
    """A decoder at temperature 1 whose `use` rule is `rule`."""
    build = functools.partial(
        masked.masked_diffusion, model, max_new_tokens=new, sampling=Sampling(1.0)
    )
    if use == "commit":
        return build(rule)
    plain = commit.one_by_one(commit.order("random"))
    if use == "edit":
        return build(plain, edit=rule)
    limit = None if rule.is_bounded else MOST_STEPS
    return build(plain, remask=rule, max_steps=limit)


def law(
    sized: Callable[[int, int], Decoder], params: dict[str, Any], use: str = "commit"
) -> tuple[list[canvas.Walk], list[canvas.Walk]]:
    """Walks of canvases from small to large: of the decoder, and one token a step.

    Small ones are walked where the largest is off, up to the first that is off too: it
    holds the example that is easiest to follow.
    """
    *small, largest = SIZES if use == "commit" else SIZES[:2]

    def pair(vocab: int, new: int) -> tuple[canvas.Walk, canvas.Walk]:
        plan = canvas.plan_of(sized(vocab, new))
        assert plan is not None
        size = {"vocab": vocab, "new": new, "max_turns": MOST_STEPS}
        walked = canvas.walk(plan, params, **size)
        if use != "commit" or walked.per_step <= 1 + 1e-9:
            return walked, walked
        return walked, canvas.walk(canvas.leftmost(plan), params, **size)

    found, last = [], pair(*largest)
    # Which of the two is to be off: with one token a step, if it is there.
    which = 1 if last[1].variation > CLOSE else 0
    for size in small if last[which].variation > CLOSE else []:
        found.append(pair(*size))
        if found[-1][which].variation > CLOSE:
            break
    walks, single = zip(*found, last)
    return list(walks), list(single)


def law_finding(walks: list[canvas.Walk], single: list[canvas.Walk], use: str):
    """The verdict on the law, its cause, and the smallest example against it."""
    biased = [walk for walk in single if walk.variation > CLOSE]
    if use == "commit" and not biased:
        says = (
            "exact: the joint's own law at one token a step (total variation "
            f"{max(walk.variation for walk in single):.1g})"
        )
        last = walks[-1]
        if last.variation > CLOSE:
            says += (
                f"; filling {last.per_step:.1f} positions a step costs total variation "
                f"{last.variation:.2g}, since each is drawn from its own law. "
                f"{example(next(w for w in walks if w.variation > CLOSE))}"
            )
        return Finding("law", True, says, last.variation)
    shown = biased if use == "commit" else [w for w in walks if w.variation > CLOSE]
    if not shown:
        says = f"the joint's own law (total variation {walks[-1].variation:.1g})"
        return Finding("law", True, says, walks[-1].variation)
    worst = shown[-1]
    at = "at one token a step, " if use == "commit" else ""
    says = (
        f"biased: total variation {worst.variation:.2g} from the joint {at}"
        f"because {why(shown, use)}. Smallest counterexample: {example(shown[0])}"
    )
    return Finding("law", False, says, worst.variation)


def why(walks: list[canvas.Walk], use: str) -> str:
    """The cause, from what the walks saw."""
    if use == "remask":
        return "what it reopens depends on what was drawn there, or it is drawn again"
    if use == "edit":
        return "it overwrites tokens by draws that saw more than the ones before them"
    pair = next((walk.reads_draws for walk in walks if walk.reads_draws), None)
    if pair is None:
        return "when it fills a position depends on the tokens drawn before"
    (first, here), (second, there) = pair
    return (
        "which positions it fills depends on the tokens drawn there (in one and the "
        f"same situation the draws {string(first)} fill {_places(here)} and "
        f"{string(second)} {_places(there)}): it favours likely tokens; entropy, "
        "margin and max_log_prob are blind to the draw"
    )


def example(walk: canvas.Walk) -> str:
    """The string that is furthest off, in a sentence."""
    off = walk.worst
    return (
        f'{walk.new} positions of {walk.vocab} tokens: "{string(off)}" has probability '
        f"{walk.exact[off]:.3f} and comes with {walk.law[off]:.3f}"
    )


def progresses(rule: Rule, params: dict[str, Any]) -> Finding:
    """Whether a commit rule fills positions by itself, without being forced."""
    limit = 4 * toys.NEW

    def build() -> Decoder:
        return masked.masked_diffusion(
            toys.MASKED, rule, max_new_tokens=toys.NEW, sampling=Sampling(1.0),
            progress="schedule", max_steps=limit,
        )  # fmt: skip

    program = runs._Program(runs.Tried(build, {}, {"model": toys.LAW, **params}))
    _, stats = program(toys.ragged())
    calls = np.asarray(stats.num_calls)
    if (calls < limit).all():
        says = "it fills every canvas by itself"
        return Finding("progresses", True, says)
    stuck = int((calls >= limit).sum())
    early = np.asarray(stats.committed_per_call)[:, 1:].sum(1)
    if (early <= 1).all():
        says = (
            f"does not terminate by itself: in {limit} steps it filled nothing; only "
            "progress='force', which fills the leftmost open position, ends it"
        )
        return Finding("progresses", False, says)
    says = (
        f"{stuck} of {len(calls)} rows waited for {limit} steps: it relies on "
        "progress='force', which is the default"
    )
    return Finding("progresses", True, says)


def settles(stats: decode.Stats) -> Finding:
    """Whether rows end before the last step, which fills whatever is open."""
    calls = np.asarray(stats.num_calls)
    stuck = int((calls >= MOST_STEPS).sum())
    if 2 * stuck > len(calls):
        says = (
            f"does not terminate by itself: {stuck} of {len(calls)} rows were ended by "
            f"the last of {MOST_STEPS} steps, which fills whatever is open"
        )
        return Finding("settles", False, says)
    says = f"{len(calls) - stuck} of {len(calls)} rows ended before step {MOST_STEPS}"
    return Finding("settles", True, says)


def _places(filled: list[int]) -> str:
    if not filled:
        return "none"
    word = "positions" if len(filled) > 1 else "position"
    return f"{word} {' and '.join(str(place + 1) for place in filled)}"
