"""What a method is made of, read off its source: the family's phases, parts, knobs."""

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from pdecode import families
from pdecode import knobs as knob_rules

_FAMILIES = {
    "masked": "masked_diffusion",
    "speculative": "draft_verify",
    "frontier": "frontier",
    "wavefront": "(wavefront|of_tables)",
    "canvases": "canvases",
    "judged": "judged",
    "overlapped": "overlapped",
    "any_subset": "any_subset",
    "canvas_chain": "canvas_chain",
    "set_blocks": "set_blocks",
}
_DRAFTS = (
    "where drafts are often right and a call of a few queries costs about what one of "
    "a single query costs: small batches, memory-bound hardware",
    "large batches or a slow drafter, where the wider call is paid for in full; look "
    "at tokens a call and at queries a token in pdecode compare",
)
_CANVAS = (
    "for a model trained with a mask token, where several positions are sure at once",
    "where the text must be its model's own law: positions filled together are drawn "
    "independently; a whole canvas a call also costs more than one cached token",
)
# By family, or by method where that is used otherwise: (when it helps, when it does
# not).
_WHEN = {
    "speculative": _DRAFTS,
    "judged": _DRAFTS,
    "overlapped": _DRAFTS,
    "masked": _CANVAS,
    "any_subset": _DRAFTS,
    "canvas_chain": _CANVAS,
    "set_blocks": (
        "for a causal model that was taught to fill masks, where several of the next "
        "places are sure at once; its cache is exact, and its own law is one call away",
        "for a causal model that never saw a mask inside its text, and where places "
        "filled together depend on each other",
    ),
    "frontier": (
        "for images and other data without one natural order, and to fill in between",
        "where groups of positions depend on each other and are decided together",
    ),
    "wavefront": (
        "for images of a causal model, whose places hang on those near them",
        "for text, which has no rows, and where what is far away decides",
    ),
    "canvases": (
        "for a model trained on noisy canvases, which may revise every token",
        "for a model that has a mask token or predicts the next token: it does not fit",
    ),
    "distilled_decoding": (
        "for a student that was taught its teacher's tokens as a function of noise, "
        "where a pass or two must do",
        "for any other model, and where what the student got wrong must be corrected: "
        "no pass of the teacher stands behind it",
    ),
}


class Part(NamedTuple):
    """One component that the method's code names."""

    name: str  # as it stands there, such as "commit.threshold"
    about: str  # the first sentence of its documentation
    knobs: tuple[str, ...]  # the method's keywords that are passed to it


def family(method: Callable) -> types.ModuleType | None:
    """The family whose decoder the method returns; None for one of its own."""
    code = inspect.getsource(method)
    for name, call in _FAMILIES.items():
        if re.search(rf"\b{name}\.{call}\(", code):
            return getattr(families, name, None) or __import__(
                f"pdecode.families.{name}", fromlist=[name]
            )
    return None


def step_of(method: Callable) -> Callable | None:
    """The step that runs: the method's own, or its family's."""
    own = getattr(inspect.getmodule(method), "step", None)
    home = family(method)
    return own or getattr(home, "step", None)


def step_lines(method: Callable) -> list[str]:
    """The phases of a step in order, each in the words of its own function."""
    return phases(step_of(method))


def phases(step: Callable | None) -> list[str]:
    """The functions of the families that `step` calls, in order, as "name: about"."""
    if step is None:
        return []
    module, found = inspect.getmodule(step), []
    for call in _calls(step):
        phase = _named(module, call.func)
        text = _first_sentence(phase)
        is_count = text.startswith(("int32", "bool", "float32"))
        is_ours = getattr(phase, "__module__", "").startswith("pdecode.families")
        is_phase = inspect.isfunction(phase) and phase is not step and not is_count
        if is_ours and is_phase and text:
            line = f"{phase.__name__}: {text}"
            if line not in found and phase.__name__ not in ("info", "done"):
                found.append(line)
    return found


def parts(method: Callable) -> list[Part]:
    """Rules, drafters, windows and lenses that the method's own code puts together."""
    module = inspect.getmodule(method)
    known = set(knob_rules.parameters(method))
    found: dict[str, Part] = {}
    for node in ast.walk(_tree(method)):
        if isinstance(node, ast.Call):
            target, inside = node.func, [*node.args, *(k.value for k in node.keywords)]
        elif isinstance(node, ast.Attribute):
            target, inside = node, []
        else:
            continue
        part = _named(module, target)
        home = getattr(part, "__module__", None) or ""
        is_part = home.startswith(("pdecode.rules", "pdecode.drafters"))
        if not is_part or not callable(part):
            continue
        name = ast.unparse(target)
        used = {
            each.id
            for value in inside
            for each in ast.walk(value)
            if isinstance(each, ast.Name) and each.id in known
        }
        before = found[name].knobs if name in found else ()
        used = tuple(sorted({*before, *used}))
        found[name] = Part(name, _first_sentence(part), used)
    return list(found.values())


def when(method: Callable) -> tuple[str, str] | None:
    """(when it helps, when it does not), its own or its family's; None: neither."""
    home = family(method)
    its = None if home is None else _WHEN.get(home.__name__.rpartition(".")[2])
    return _WHEN.get(method.__name__, its)


def _calls(function: Callable) -> list[ast.Call]:
    """Calls of a function in the order they stand."""
    found = [n for n in ast.walk(_tree(function)) if isinstance(n, ast.Call)]
    return sorted(found, key=lambda node: (node.lineno, -node.col_offset))


def _tree(function: Callable) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def _named(module: Any, node: ast.AST) -> Any:
    """What a name or a dotted name means in `module`; None if it is local."""
    if isinstance(node, ast.Name):
        return getattr(module, node.id, None)
    if isinstance(node, ast.Attribute):
        return getattr(_named(module, node.value), node.attr, None)
    return None


def _first_sentence(part: Any) -> str:
    text = (inspect.getdoc(part) or "").split("\n\n")[0].replace("\n", " ")
    return (
        re.split(r"(?<=[a-z\d)\]])[.:] (?=[A-Z`])", text + " ")[0].strip().rstrip(".:")
    )
