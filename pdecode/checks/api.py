"""`pdecode.check`: what a part of one's own keeps, in plain words."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from pdecode import names, recipes
from pdecode.checks import acceptance, decoders, drafts, masked_rules, networks, toys
from pdecode.checks.report import Report
from pdecode.contracts import (
    BlockRule,
    Decoder,
    Drafter,
    Model,
    NodeRule,
    Params,
    Rule,
)

_EMPTY = inspect.Parameter.empty

KINDS = (
    "a commit, remask or edit Rule, a NodeRule or BlockRule, a Drafter, a Decoder, a "
    "Model, a function that returns one of them, or a method"
)


def check(
    part: Any,
    params: Params = None,
    *,
    use: str = "commit",
    name: str | None = None,
    **settings: Any,
) -> Report:
    """Tries `part` on toys whose every probability is known, and says what it found.

    `part` is a Rule (`use` says as what: commit, remask or edit), a NodeRule or
    BlockRule, a Drafter over `checks.toys.CAUSAL`, a Decoder over the toys, a Model
    with its `params`, a method, or a function that makes any of these: `settings` are
    its arguments. Floats among them, and its float defaults, are knobs, which must
    serve as tracers. A text is the place of such a function, "file.py:name" or
    "module:name", or the name of a method. For everything but a Model `params` are
    those of further roles, {"filter": ...}. Raises ValueError for what it cannot try.
    """
    if use not in masked_rules.USES:
        raise ValueError(f"{use=} must be one of {masked_rules.USES}")
    if isinstance(part, str):
        name = name or part
        part, settings = _resolved(part, settings)
    if settings and (isinstance(part, Model) or not callable(part)):
        raise ValueError(
            f"{name or type(part).__name__} is made already: it takes no "
            f"{next(iter(settings))!r}"
        )
    if isinstance(part, Model):
        return networks.report(part, params, name or part.name)
    extra = {} if params is None else dict(params)
    if not callable(part):
        made = Maker(lambda **none: part, {}, is_function=False)
        return _of_record(made, part, use, name or type(part).__name__, extra)
    name = name or getattr(part, "__name__", repr(part))
    if _is_method(part):
        if extra:
            raise ValueError(
                f"{name} is a method, whose roles get toys: check the decoder that it "
                "makes, with params"
            )
        return decoders.report(part, settings, name)
    made = _maker(part, settings, name)
    return _of_record(made, made.build(**made.knobs), use, name, extra)


class Maker(NamedTuple):
    """How a part is made: `build(model=..., **knobs)`, by a function of the user's."""

    build: Callable[..., Any]
    knobs: dict[str, float]
    is_function: bool = True


def _of_record(maker: Maker, made: Any, use: str, name: str, params: dict) -> Report:
    build, knobs, is_function = maker
    if isinstance(made, Rule):
        return masked_rules.report(build, knobs, name, use, params)
    if isinstance(made, (NodeRule, BlockRule)):
        return acceptance.report(made, name, params)
    if isinstance(made, Drafter):
        return drafts.report(build, knobs, name, params, is_function)
    if isinstance(made, Decoder):
        return decoders.of_decoder(build, knobs, params, name)
    raise ValueError(f"{name} is {type(made).__name__}; check takes {KINDS}")


def _maker(function: Callable, settings: dict[str, Any], name: str) -> Maker:
    """`function` with its settings; ValueError for what is missing or unknown."""
    known = inspect.signature(function).parameters
    unknown = [each for each in settings if each not in known]
    if unknown:
        raise ValueError(
            f"{name} has no argument {unknown[0]!r}; {names.listed(unknown[0], known)}"
        )
    takes_model = [each for each in known if each in ("model", "drafter")]
    values = {
        each: settings.get(each, parameter.default)
        for each, parameter in known.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and each not in takes_model
    }
    missing = [each for each, value in values.items() if value is _EMPTY]
    if missing:
        raise ValueError(
            f"{name} needs {missing[0]}: give pdecode.check(..., {missing[0]}=...), or "
            f"--set {missing[0]}=... on the command line"
        )
    knobs = {each: value for each, value in values.items() if _is_float(value)}
    fixed = {each: value for each, value in values.items() if each not in knobs}

    def build(*, model: Model = toys.CAUSAL, **traced) -> Any:
        models = {each: settings.get(each, model) for each in takes_model}
        return function(**models, **fixed, **traced)

    return Maker(build, knobs)


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


def _resolved(place: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What stands at a place, and its settings."""
    if ":" in place:
        return recipes.located(place), settings
    found = recipes.find(place)
    return found.method, {**found.settings, **settings}


def _is_method(function: Callable) -> bool:
    found = inspect.signature(function).parameters
    return next(iter(found), None) == "model" and "max_new_tokens" in found
