"""How a method's signature says what may vary, and the check of what a user passes.

    def fast_dllm(
        model: Model,
        *,
        max_new_tokens: Annotated[int, Size(1)],
        threshold: Annotated[float, Knob(0, 1)] = 0.9,
        cache: Literal["none", "prefix", "dual"] = "none",
    ) -> Decoder: ...

A `Knob` is a number that may be a tracer: changing it never compiles again; `Numbers`
are several of them, such as a measured curve. A `Size` is a Python int that fixes
shapes; it and a choice (`Literal`, `bool`) are static. In a method of one's own a plain
`float` is a knob and a plain `int` a size, of any value.
"""

import inspect
import math
import operator
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pdecode import names
from pdecode.contracts import (
    Background,
    BlockLayer,
    ChainedHeads,
    Codes,
    DraftHeads,
    DraftLayer,
    DraftModules,
    Filter,
    Guard,
    Judge,
    Model,
    PromptTokens,
    Transfer,
)

__all__ = [
    "MOST",
    "CallCosts",
    "Choice",
    "Count",
    "DraftLength",
    "Knob",
    "MaskedModel",
    "Needs",
    "NextModel",
    "NoisedModel",
    "Numbers",
    "Parameter",
    "Size",
    "SpelledModel",
    "Temperature",
    "TopK",
    "TopP",
    "UniformModel",
    "Variant",
    "check",
    "needs",
    "parameters",
    "roles",
    "split",
    "used",
    "word",
]

MOST = 2**24  # of a Size, which is a length of arrays


class Knob(NamedTuple):
    """A traced number in [low, high]; a value equal to `off` switches it off."""

    low: float
    high: float
    off: float | None = None


class Numbers(NamedTuple):
    """`count` traced numbers in [low, high]."""

    count: int
    low: float
    high: float


class Size(NamedTuple):
    """A static int of at least `low`, or a tuple of such."""

    low: int = 1


class Choice(NamedTuple):
    """One of a few names (a `Literal` in the signature); static."""

    names: tuple


class Needs(NamedTuple):
    """What a model must predict to be given to a method (`Model.predicts`)."""

    predicts: str


_ANY_INT = -(2**31)

# Spelled once, for signatures.
Temperature = Annotated[float, Knob(0, 100)]
TopK = Annotated[int, Knob(1, 2**31 - 1)]
TopP = Annotated[float, Knob(0, 1)]
# Of calls of 1, 2, 4, 8, 16 and 32 lanes, in the unit of a drafter's call.
CallCosts = Annotated[tuple[float, ...], Numbers(6, 0, 1e9)]
# As a setting says, or as is worth its lanes at such costs.
DraftLength = Literal["fixed", "auto"]
Count = Annotated[int, Size()]
NextModel = Annotated[Model, Needs("next")]
# Causal, with tokens of its own that spell the target's (`drafters.spelled.tables`).
SpelledModel = Annotated[Model, Needs("spelled")]
MaskedModel = Annotated[Model, Needs("masked")]
UniformModel = Annotated[Model, Needs("uniform")]
# Whose open positions hold noise in the space of codes (`models.noised`).
NoisedModel = Annotated[Model, Needs("noised")]


# Networks that are no `Model`.
_SMALL = {
    DraftHeads: "heads",
    ChainedHeads: "chained_heads",
    DraftLayer: "layer",
    DraftModules: "modules",
    Filter: "filter",
    PromptTokens: "prompt_tokens",
    BlockLayer: "block_layer",
    Transfer: "transfer",
    Judge: "judge",
    Codes: "codes",
    Guard: "guard",
    Background: "background",
}


class Variant(NamedTuple):
    """A name for a method with settings. It has no code of its own."""

    method: str
    settings: dict[str, Any]  # what differs from the method's defaults
    about: str


class Parameter(NamedTuple):
    """One keyword of a method, read off its signature."""

    name: str
    kind: Knob | Numbers | Size | Choice
    base: Any  # float, int, str or tuple
    is_optional: bool  # None is allowed
    default: Any  # inspect.Parameter.empty: required


def parameters(method: Callable) -> dict[str, Parameter]:
    """The keywords of `method` in signature order; its models are left out."""
    hints = typing.get_type_hints(method, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint = hints.get(name) or _guessed(parameter)
        found[name] = _read(name, hint, parameter.default)
    return found


def used(method: Callable, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, and the default of every other keyword that has one."""
    empty = inspect.Parameter.empty
    defaults = {name: each.default for name, each in parameters(method).items()}
    return {n: d for n, d in {**defaults, **values}.items() if d is not empty}


def needs(method: Callable) -> dict[str, str]:
    """What each model of `method` must predict, by role.

    What is no model has a word of its own: "heads", "chained_heads", "layer",
    "modules", "filter", "judge", "codes", "guard", "background", "prompt_tokens",
    "block_layer", "transfer". A role without `Needs` is not listed.
    """
    hints = typing.get_type_hints(method, include_extras=True)
    found = {}
    for name in roles(method):
        for extra in getattr(hints.get(name), "__metadata__", ()):
            if isinstance(extra, Needs):
                found[name] = extra.predicts
        if hints.get(name) in _SMALL:
            found[name] = _SMALL[hints[name]]
    return found


def roles(method: Callable) -> tuple[str, ...]:
    """Names of the models that `method` takes, such as ("model", "drafter")."""
    found = inspect.signature(method).parameters.values()
    return tuple(p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD)


def word(record: Any) -> str:
    """What a record that is no model is called in `needs`, or "model"."""
    return _SMALL.get(type(record), "model")


def split(method: Callable, values: dict[str, Any]) -> tuple[dict, dict]:
    """Checked (knobs as float32 or int32 arrays, static sizes and choices).

    Defaults are filled in, so that every knob is an argument of the compiled program.
    Raises ValueError or TypeError naming the value, the limit and the known names.
    """
    known = parameters(method)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{method.__name__} has no knob or size {unknown[0]!r}; "
            f"{names.listed(unknown[0], known)}"
        )
    knobs, static = {}, {}
    for name, parameter in known.items():
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty:
            raise TypeError(f"{method.__name__} needs {name}=...")
        value = check(parameter, value, method.__name__)
        if isinstance(parameter.kind, (Knob, Numbers)) and value is not None:
            # A weak type would trace again when a Python number becomes an array.
            dtype = jnp.int32 if parameter.base is int else jnp.float32
            knobs[name] = value if _is_abstract(value) else jnp.asarray(value, dtype)
        else:
            static[name] = value
    return knobs, static


def check(parameter: Parameter, value: Any, where: str) -> Any:
    """`value` if it is in range (None where it switches off), else an error."""
    name, kind = parameter.name, parameter.kind
    if value is None:
        if not parameter.is_optional:
            raise ValueError(f"{where}: {name}=None, but a value is needed")
        return None
    if isinstance(kind, Choice):
        if value not in kind.names:
            raise ValueError(f"{where}: {name}={value!r} must be one of {kind.names}")
        return value
    if isinstance(kind, Size) and parameter.base is tuple:
        if not isinstance(value, (tuple, list)) or not value:
            raise ValueError(f"{where}: {name}={value!r} must be a tuple of ints")
        return tuple(_check_size(kind, name, each, where) for each in value)
    if isinstance(kind, Size):
        return _check_size(kind, name, value, where)
    if _is_abstract(value):
        return value
    if isinstance(kind, Numbers):
        return _check_numbers(kind, name, value, where)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {name}={value!r} must be a number") from None
    if parameter.base is int and number % 1 != 0:
        raise ValueError(f"{where}: {name}={value} must be a whole number")
    if not kind.low <= number <= kind.high:  # also refuses NaN
        hint = "; None switches it off" if parameter.is_optional else ""
        raise ValueError(
            f"{where}: {name}={value} must lie in [{kind.low:g}, {kind.high:g}]{hint}"
        )
    if kind.off is not None and number == kind.off:
        return None
    return value


def _check_numbers(kind: Numbers, name: str, value: Any, where: str) -> tuple:
    try:
        found = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        found = ()
    # NaN lies in no range.
    if len(found) != kind.count or not all(kind.low <= x <= kind.high for x in found):
        raise ValueError(
            f"{where}: {name}={value!r} must be {kind.count} numbers in "
            f"[{kind.low:g}, {kind.high:g}]"
        )
    return found


def _check_size(kind: Size, name: str, value: Any, where: str) -> int:
    try:
        value = value if isinstance(value, bool) else operator.index(value)
    except TypeError:  # a tracer too: its value is not known yet
        pass
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: {name}={value!r} must be a Python int")
    if value < kind.low:
        raise ValueError(f"{where}: {name}={value} must be at least {kind.low}")
    if value > MOST:
        raise ValueError(f"{where}: {name}={value} must be at most {MOST}")
    return value


def _read(name: str, hint: Any, default: Any) -> Parameter:
    is_optional = False
    if type(None) in typing.get_args(hint):
        is_optional = True
        (hint,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if hint is bool:
        return Parameter(name, Choice((False, True)), bool, is_optional, default)
    if typing.get_origin(hint) is typing.Literal:
        kind = Choice(typing.get_args(hint))
        return Parameter(name, kind, str, is_optional, default)
    if hint is float:
        return Parameter(name, Knob(-math.inf, math.inf), float, is_optional, default)
    if hint is int or typing.get_origin(hint) is tuple:
        kind = Size(1 if name == "max_new_tokens" else _ANY_INT)
        return Parameter(
            name, kind, hint if hint is int else tuple, is_optional, default
        )
    if typing.get_origin(hint) is not typing.Annotated:
        shown = getattr(hint, "__name__", hint)
        raise TypeError(
            f"argument {name} is annotated as {shown}: write int, float, bool, a "
            "Literal, or Annotated with a Knob or Size"
        )
    base, kind = typing.get_args(hint)[:2]
    base = typing.get_origin(base) or base
    return Parameter(name, kind, base, is_optional, default)


def _guessed(parameter: inspect.Parameter) -> Any:
    """What a keyword without an annotation is, by its default."""
    if parameter.default not in (inspect.Parameter.empty, None):
        return type(parameter.default)
    if parameter.name == "max_new_tokens":
        return int
    raise TypeError(
        f"argument {parameter.name} has neither annotation nor default: write int, "
        "float, bool, a Literal, or Annotated with a Knob or Size"
    )


def _is_abstract(value: Any) -> bool:
    return isinstance(value, (jax.core.Tracer, jax.ShapeDtypeStruct))
