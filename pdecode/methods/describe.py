"""What a method is, read off its code: paper, guarantee, cost, knobs, recipe."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from pdecode import knobs, methods
from pdecode.methods import parts
from pdecode.methods import variants as named

_EMPTY = inspect.Parameter.empty


def summary(method: Callable) -> str:
    """The first sentence of the method's docstring."""
    return (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " ")


def guarantee(method: Callable) -> str:
    """What its docstring says after "Guarantee:"."""
    return _part(method, "Guarantee")


def cost(method: Callable) -> str:
    """What its docstring says after "Cost:"."""
    return _part(method, "Cost")


def paper(method: Callable) -> str:
    """The citation in its module's docstring."""
    text = _module_doc(method)
    body = text.split("\n\n", 1)[-1].replace("\n", " ")
    # A sentence ends at a full stop before a capital, but not in "et al., 2025".
    return re.split(r"(?<=[^A-Z.])[.:] (?=[A-Z`\"(])", body + " ")[0].strip()


def arxiv(method: Callable) -> str:
    """The first arXiv id in its module's docstring, or an empty string."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", _module_doc(method))
    return found.group(1) if found else ""


def recipe(method: Callable) -> str:
    """The method's own code below its docstring."""
    lines = inspect.getsource(method).split("\n")
    if not inspect.getdoc(method):
        return textwrap.dedent("\n".join(lines)).strip()
    quotes = [i for i, line in enumerate(lines) if '"""' in line]
    closing = quotes[0] if lines[quotes[0]].count('"""') == 2 else quotes[1]
    return textwrap.dedent("\n".join(lines[closing + 1 :])).strip()


def knob_lines(method: Callable) -> list[tuple[str, str, str]]:
    """(name, range, default) of each keyword in signature order."""
    found = []
    for name, parameter in knobs.parameters(method).items():
        default = parameter.default
        default = "required" if default is _EMPTY else str(default)
        found.append((name, _range(parameter), default))
    return found


def listing() -> list[tuple[str, str, str, str, str]]:
    """(name, group, arXiv id, guarantee, models) of every method."""
    found = []
    for name in methods.__all__:
        method = getattr(methods, name)
        found.append(
            (
                name,
                named.group(method),
                arxiv(method),
                re.split(r"[;,:.] ", guarantee(method) + " ")[0],
                ", ".join(knobs.roles(method)),
            )
        )
    return found


def entries() -> list[dict[str, Any]]:
    """Every method and variant as plain data: the one list that other tools read."""
    return [_entry(name, *named.resolve(name)) for name in named.known()]


def entry(name: str, method: Callable, settings: dict[str, Any]) -> dict[str, Any]:
    """One method as plain data, with its step and parts besides."""
    return {
        **_entry(name, method, settings),
        "step": parts.step_lines(method),
        "parts": [each._asdict() for each in parts.parts(method)],
        "recipe": recipe(method),
    }


def _entry(name: str, method: Callable, settings: dict[str, Any]) -> dict[str, Any]:
    variant = methods.VARIANTS.get(name)
    return {
        "name": name,
        "variant_of": variant.method if variant else None,
        "settings": settings,
        "group": named.group(method) if _is_ours(method) else "own",
        "roles": list(knobs.roles(method)),
        "needs": knobs.needs(method),
        "guarantee": guarantee(method),
        "cost": cost(method),
        "paper": paper(method),
        "arxiv": arxiv(method),
        "summary": variant.about if variant else summary(method),
        "knobs": [
            {"name": knob, "range": limits, "default": default}
            for knob, limits, default in knob_lines(method)
        ],
    }


def text(name: str, method: Callable, settings: dict[str, Any]) -> str:
    """Everything about a method: what `about` says, its recipe and its variants."""
    lines = [about(name, method, settings), ""]
    lines += ["recipe:", textwrap.indent(recipe(method), "  ")]
    if found := variants(name):
        lines += ["", f"variants: {', '.join(found)}"]
    return "\n".join(lines)


def variants(name: str) -> list[str]:
    """Names of what is the method `name` with other settings."""
    return [each for each, made in methods.VARIANTS.items() if made.method == name]


def about(name: str, method: Callable, settings: dict[str, Any]) -> str:
    """Paper, guarantee, cost, step, parts and knobs of a method.

    `settings` are what its name implies (a variant's).
    """
    lines = [f"{name}: {summary(method)}", ""]
    if name in methods.VARIANTS:
        known = methods.VARIANTS[name]
        chosen = ", ".join(f"{k}={v!r}" for k, v in settings.items())
        same = f"  = {known.method}" + (f" with {chosen}" if chosen else "")
        lines = [f"{name}: {known.about}", same, ""]
    if _is_ours(method):
        lines += _wrapped("group", named.group(method))
    lines += _wrapped("models", ", ".join(knobs.roles(method)))
    for part, said in (
        ("paper", paper(method)),
        ("guarantee", guarantee(method)),
        ("cost", cost(method)),
    ):
        lines += _wrapped(part, said) if said else []
    chance = parts.when(method)
    if chance is not None:
        lines += _wrapped("helps", chance[0]) + _wrapped("helps not", chance[1])
    steps = parts.step_lines(method)
    if steps:
        lines += ["", "a step:"]
        for number, line in enumerate(steps, 1):
            lines += _listed(f"  {number}. ", line)
    made_of = [each for each in parts.parts(method) if each.about]
    if made_of:
        lines += ["", "made of:"]
        for each in made_of:
            lines += _listed("  ", f"{each.name}: {each.about}")
    return "\n".join([*lines, "", *_knob_text(method, settings, made_of)])


def _is_ours(method: Callable) -> bool:
    return method.__module__.startswith("pdecode.methods.")


def _knob_text(method: Callable, settings: dict[str, Any], made_of) -> list[str]:
    """Each keyword's range and default, and the part that reads it."""
    lines = ["knobs and sizes (name, range, default, read by):"]
    rows = knob_lines(method)
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for knob, limits, default in rows:
        default = str(settings[knob]) if knob in settings else default
        readers = ", ".join(each.name for each in made_of if knob in each.knobs)
        line = f"  {knob:{widths[0]}}  {limits:{widths[1]}}  {default:8}  {readers}"
        lines.append(line.rstrip())
    return lines


def _listed(head: str, content: str) -> list[str]:
    return textwrap.wrap(
        content, 88, initial_indent=head, subsequent_indent=" " * len(head)
    )


def _range(parameter: knobs.Parameter) -> str:
    kind = parameter.kind
    if isinstance(kind, knobs.Choice):
        limits = " | ".join(map(str, kind.names))
    elif isinstance(kind, knobs.Size):
        limits = f"int >= {kind.low}"
        if parameter.base is tuple:
            limits = f"ints >= {kind.low}, separated by commas"
    elif isinstance(kind, knobs.Numbers):
        limits = f"{kind.count} floats in [{kind.low:g}, {kind.high:g}]"
    else:
        limits = f"{parameter.base.__name__} in [{kind.low:g}, {kind.high:g}]"
        if kind.off is not None:
            limits += f", {kind.off:g}: off"
    return limits + (", or None" if parameter.is_optional else "")


def _part(method: Callable, name: str) -> str:
    """The text after "name: " up to the next part or paragraph, on one line."""
    _, found, rest = _doc(method).partition(f"{name}: ")
    stop = re.search(r"\s(?:Guarantee|Cost): |\n\n", rest)
    return " ".join((rest[: stop.start()] if stop else rest).split()) if found else ""


def _doc(method: Callable) -> str:
    return inspect.getdoc(method) or ""


def _module_doc(method: Callable) -> str:
    return inspect.getmodule(method).__doc__ or ""


def _wrapped(name: str, content: str) -> list[str]:
    return textwrap.wrap(
        f"{name + ':':11}{content}", width=88, subsequent_indent=" " * 11
    )
