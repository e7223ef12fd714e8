"""Methods and their named variants by name."""

from collections.abc import Callable
from typing import Any

from pdecode import knobs, methods, names


def known() -> list[str]:
    """Names of all methods, then of all variants."""
    return [*methods.__all__, *methods.VARIANTS]


def resolve(name: str) -> tuple[Callable, dict[str, Any]]:
    """The method that `name` means and the settings it implies.

    Raises ValueError listing the known names.
    """
    if name in methods.__all__:
        return getattr(methods, name), {}
    if name in methods.VARIANTS:
        method, settings, _ = methods.VARIANTS[name]
        return getattr(methods, method), dict(settings)
    raise ValueError(f"unknown method {name!r}; {names.listed(name, known())}")


def group(method: Callable) -> str:
    """The folder of pdecode.methods that `method` lives in, such as "masked"."""
    return method.__module__.split(".")[-2]


def fitting(kind: str) -> list[str]:
    """Names of the methods whose target has this `Model.predicts`."""
    every = {name: getattr(methods, name) for name in methods.__all__}
    return [n for n, each in every.items() if knobs.needs(each).get("model") == kind]
