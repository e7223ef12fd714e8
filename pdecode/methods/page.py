"""Writes docs/methods.md from the code.

    python -m pdecode.methods.page docs/methods.md

Run it in the project's root, where tests/ tells which files prove a method.
"""

import inspect
import pathlib
import re
import sys

from pdecode import files, methods
from pdecode.methods import describe, parts
from pdecode.methods import variants as named

# Where invariants, laws and authors' own tokens are tried.
_PROOFS = ("cases/*.py", "test_exact*.py", "test_accept.py", "test_checkpoints.py")


def page(tests: pathlib.Path) -> str:
    """The whole page; `tests` is the folder that is searched for the methods' names."""
    found = sorted(path for proof in _PROOFS for path in tests.glob(proof))
    sources = {path: path.read_text() for path in found}
    lines = [
        "# Methods",
        "",
        "Written by `python -m pdecode.methods.page docs/methods.md`; a test keeps it",
        "fresh. `pdecode methods NAME` prints the same with the recipe's code.",
    ]
    for group in methods.GROUPS:
        folder = sys.modules[f"pdecode.methods.{group}"]
        lines += ["", f"## {group}", "", (inspect.getdoc(folder) or "").split("\n")[0]]
        for name in folder.__all__:
            lines += ["", f"### {name}", "", *_about(name, tests, sources)]
    return "\n".join(lines) + "\n"


def _about(name: str, tests: pathlib.Path, sources: dict) -> list[str]:
    method, _ = named.resolve(name)
    lines = [describe.summary(method), ""]
    lines.append(f"- paper: {describe.paper(method)}")
    lines.append(f"- guarantee: {describe.guarantee(method)}")
    lines.append(f"- cost: {describe.cost(method)}")
    step = _step(method)
    if step:
        lines.append(f"- a step: {step}")
    knobs = "; ".join(
        f"`{knob}` ({limits}; default {default})"
        for knob, limits, default in describe.knob_lines(method)
    )
    lines.append(f"- knobs: {knobs}")
    variants = [v for v, each in methods.VARIANTS.items() if each.method == name]
    if variants:
        lines.append(f"- variants: {', '.join(f'`{each}`' for each in variants)}")
    word = re.compile(rf"\b{name}\b")
    tried = [
        f"tests/{path.relative_to(tests)}"
        for path, text in sources.items()
        if word.search(text)
    ]
    lines.append(f"- tried in: {', '.join(tried)}")
    return lines


def _step(method) -> str:
    """What the method's own step says of itself, or that of the family it calls."""
    step = parts.step_of(method)
    return "" if step is None else (inspect.getdoc(step) or "").split("\n")[0]


if __name__ == "__main__":
    with files.replacing(sys.argv[1]) as file:
        file.write(page(pathlib.Path("tests")).encode())
