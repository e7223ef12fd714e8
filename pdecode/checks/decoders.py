"""Whole methods: the invariants of every decoder, and the guarantee it states."""

from collections.abc import Callable, Sequence
from typing import Any

from pdecode import knobs as knob_rules
from pdecode.checks import canvas, drafts, masked_rules, runs, toys
from pdecode.checks.report import CLOSE, Finding, Report
from pdecode.contracts import Decoder, Model

SIZES = {"max_new_tokens": toys.NEW}


def report(method: Callable, settings: dict[str, Any], name: str) -> Report:
    """A method on the toys; its models are chosen by what it says they must predict."""
    knobs, static = knob_rules.split(method, {**SIZES, **settings})
    known = knob_rules.parameters(method)
    floats = {k: float(v) for k, v in knobs.items() if known[k].base is float}
    fixed = {**static, **{k: v for k, v in knobs.items() if k not in floats}}
    is_sampled = "temperature" in floats and "temperature" not in settings
    if is_sampled:
        floats["temperature"] = 1.0
    models = models_of(method, toys.OF_KIND, name)

    def build(**traced) -> Decoder:
        return method(*models, **fixed, **traced)

    params = {"model": toys.LAW, "drafter": toys.NEAR}
    seen = runs.of(runs.Tried(build, floats, params))
    findings = list(seen.findings)
    decoder = build(**floats)
    is_enumerated = canvas.plan_of(decoder) is not None and len(models) == 1
    if floats.get("temperature") == 1.0:
        small = drafts.small()

        def sized(vocab: int, new: int) -> Decoder:
            pair = canvas.model_of(vocab, new, toys.MASKED)
            these = models_of(method, {"next": toys.CAUSAL, "masked": pair}, name)
            return method(*these, **{**fixed, **floats, "max_new_tokens": new})

        if is_enumerated:
            findings.append(masked_rules.law_finding(
                *masked_rules.law(sized, {}), "commit"
            ))  # fmt: skip
        else:
            these = models_of(method, small.models, name)
            made = method(*these, **{**fixed, **floats, "max_new_tokens": drafts.NEW})
            both = {"model": small.law, "drafter": small.near}
            findings.append(drafts.sampled_finding(made, both))
    if decoder.guarantee == "lossless" and "temperature" in floats:
        findings.append(_greedy(build, floats, params))
    return Report(
        name,
        "method",
        tuple(findings),
        _tried(decoder.guarantee, findings),
        _is_true(decoder.guarantee, findings, is_enumerated),
    )


def _is_true(guarantee: str, findings: list[Finding], is_enumerated: bool) -> bool:
    """Whether what was found is what a decoder of that guarantee may show."""
    if guarantee == "lossy":
        return True
    kept = all(each.holds for each in findings if each.about in ("law", "greedy"))
    if guarantee == "exact" and is_enumerated:  # as it is, several at once included
        off = [each.value for each in findings if each.about == "law"]
        return kept and all(value is None or value < CLOSE for value in off)
    return kept


def models_of(method: Callable, of_kind: dict[str, Model], name: str) -> list[Model]:
    """A toy for every model of `method`."""
    needs, found = knob_rules.needs(method), []
    for role in knob_rules.roles(method):
        kind = needs.get(role, "next")
        if kind not in of_kind:
            raise ValueError(
                f"{name} takes a {role} that predicts or is {kind!r}, and no toy "
                "serves that: check its rules one by one, or its decoder"
            )
        found.append(of_kind[kind])
    return found


def _greedy(build: Callable[..., Decoder], floats: dict, params: dict) -> Finding:
    """At temperature 0 the tokens are those of plain greedy decoding."""
    tried = runs.Tried(build, {**floats, "temperature": 0.0}, params)
    made, _ = runs._Program(tried)(toys.ragged())
    says = drafts.unlike_plain(made, params, 0.0)
    kept = "at temperature 0 every token is greedy decoding's"
    return Finding("greedy", not says, f"at temperature 0 {says}" if says else kept)


def _tried(guarantee: str, findings: Sequence[Finding]) -> str | None:
    """The guarantee, where something that was found speaks to it."""
    is_seen = any(each.about in ("law", "greedy") for each in findings)
    return guarantee if guarantee == "lossy" or is_seen else None


def of_decoder(
    make: Callable[..., Decoder], knobs: dict, params: dict[str, Any], name: str
) -> Report:
    """A decoder that is made already, over the toys or with params of its own.

    Of its law nothing is tried, so a claim about that is not repeated.
    """
    params = {"model": toys.LAW, "drafter": toys.NEAR, **params}
    seen = runs.of(runs.Tried(make, knobs, params))
    claim = _tried(make(**knobs).guarantee, seen.findings)
    return Report(name, "decoder", seen.findings, claim)
