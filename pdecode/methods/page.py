"""Writes docs/methods.md from the code, and the site's pages of methods and families.

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


def site() -> dict[str, str]:
    """The site's pages by path: "methods/NAME.md" and "families/NAME.md"."""
    by_family: dict[str, list[str]] = {}
    made = {}
    for name in methods.__all__:
        method, _ = named.resolve(name)
        made[f"methods/{name}.md"] = _page_of(name, method)
        home = parts.family(method)
        if home is not None:
            by_family.setdefault(home.__name__.rpartition(".")[2], []).append(name)
    for family, names in by_family.items():
        made[f"families/{family}.md"] = _page_of_family(family, names)
    return made


def _page_of(name: str, method) -> str:
    head, home = describe.about(name, method, {}), parts.family(method)
    lines = [f"# {name}", "", describe.summary(method), "", "```text", head, "```"]
    if home is not None:
        short = home.__name__.rpartition(".")[2]
        lines += ["", f"It runs in the family [{short}](../families/{short}.md)."]
    variants = ", ".join(f"`{each}`" for each in describe.variants(name))
    if variants:
        lines += ["", f"Variants: {variants}."]
    return "\n".join([*lines, "", "```python", describe.recipe(method), "```"]) + "\n"


def _page_of_family(family: str, names: list[str]) -> str:
    first = named.resolve(names[0])[0]
    home = parts.family(first)
    about = inspect.getdoc(home) or ""
    steps = parts.phases(getattr(home, "step", None))
    lines = [f"# {family}", "", about]
    if steps:
        lines += ["", "A step:", ""]
        lines += [f"{number}. {line}" for number, line in enumerate(steps, 1)]
    when = parts.when(first)
    if when is not None:
        lines += ["", f"- helps {when[0]}", f"- does not help {when[1]}"]
    links = ", ".join(f"[{name}](../methods/{name}.md)" for name in names)
    return "\n".join([*lines, "", f"Methods: {links}."]) + "\n"


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
    variants = ", ".join(f"`{each}`" for each in describe.variants(name))
    if variants:
        lines.append(f"- variants: {variants}")
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
