"""The rules of the house, file by file: layers, sizes, lists, generated pages."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import default_cases
import pytest

from pdecode.methods import page

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "pdecode"
FILES = sorted(PACKAGE.rglob("*.py"))

# Floors, the lowest first. A module may import its own floor and those below it.
FLOORS = (
    ("version", "files", "names", "shown", "contracts"),
    ("rng", "trees", "prompts", "knobs", "sampling", "precision"),
    ("sharding",),
    ("cache",),
    ("kernels",),
    ("models",),
    ("data",),
    ("checkpoints", "rules"),
    ("families", "drafters"),
    ("decode", "methods"),
    ("train", "recipes", "results", "replay"),
    ("programs",),
    ("other_words",),
    ("assembly",),
    ("generation",),
    ("evals", "hardware", "checks"),
    ("cli", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Lines a function may have beyond 60, and why.
LONG = {
    ("pdecode/train/trainer.py", "train"): "flat on purpose: a run from top to bottom",
    ("pdecode/cli/main.py", "parser"): "a table of options",
    ("pdecode/kernels/attention/gpu.py", "_call"): "the grid and blocks of one kernel",
    ("pdecode/kernels/attention/gpu.py", "_kernel"): "one kernel, read top to bottom",
    ("pdecode/kernels/attention/tpu.py", "_kernel"): "one kernel, read top to bottom",
    ("pdecode/kernels/attention/tpu.py", "_call"): "the grid and blocks of one kernel",
}
# Lines a file may have beyond 400, and why.
PAGE = {"pdecode/contracts.py": "every record on one page"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports_of(path):
    """Names of the package's modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "pdecode"
        ):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("pdecode."))


def room_of(name):
    return name.split(".")[1] if "." in name else "pdecode"


def arrows():
    """(importer, imported) module names; the package's own lazy list stands apart."""
    for name, path in MODULES.items():
        if name != "pdecode":
            yield from ((name, other) for other in imports_of(path))


def test_nobody_imports_upward():
    wrong = [
        f"{name} -> {other}"
        for name, other in arrows()
        if room_of(other) != "pdecode"
        and FLOOR_OF[room_of(name)] < FLOOR_OF[room_of(other)]
    ]
    assert not wrong, wrong


def test_roles_import_no_family_and_families_no_drafter():
    wrong = [
        f"{name} -> {other}"
        for name, other in arrows()
        if (room_of(name), room_of(other))
        in {("drafters", "families"), ("families", "drafters"), ("rules", "families")}
    ]
    assert not wrong, wrong


def test_an_arrow_upward_is_caught():
    """Negative control: the floors are those of the rooms that exist."""
    assert FLOOR_OF["kernels"] < FLOOR_OF["models"] < FLOOR_OF["families"]
    assert {room_of(name) for name in MODULES} - {"pdecode"} == set(FLOOR_OF)


def test_no_import_circle():
    """Among imports at the top of modules, which run when a module is loaded."""
    graph = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        top = ast.Module(
            [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], []
        )
        found = set()
        for node in ast.walk(top):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in MODULES else node.module)
        graph[name] = {other for other in found if other in MODULES and other != name}
    done, active = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in active, [*active[active.index(name) :], name]
        active.append(name)
        for other in graph[name]:
            visit(other)
        done.add(active.pop())

    for name in graph:
        if name != "pdecode":
            visit(name)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    relative = str(path.relative_to(ROOT))
    if relative not in PAGE:
        assert len(text.splitlines()) <= 400, f"{relative}: would two be clearer?"
    is_method = (
        relative.startswith("pdecode/methods/") and path.parent.name != "methods"
    )
    if is_method and path.name != "__init__.py":
        assert len(text.splitlines()) <= 80, f"{relative}: what of it is a rule?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (relative, node.name) not in LONG:
            # A docstring is not code.
            first = node.body[0]
            is_doc = isinstance(first, ast.Expr) and isinstance(
                first.value, ast.Constant
            )
            doc = first.end_lineno - first.lineno + 1 if is_doc else 0
            size = node.end_lineno - node.lineno + 1 - doc
            assert size <= 60, f"{relative}: {node.name} has {size} lines"


def test_methods_are_independent():
    for path in (PACKAGE / "methods").glob("*/[a-z]*.py"):
        for name in imports_of(path):
            assert not name.startswith("pdecode.methods"), (path, name)


def test_the_page_of_methods_is_fresh():
    written = (ROOT / "docs" / "methods.md").read_text()
    assert written == page.page(ROOT / "tests"), "run python -m pdecode.methods.page"


METHOD = '''"""Surest first: one position a step, by the largest probability.

A. Author, 2026, arXiv:2601.00001.
"""

from pdecode.contracts import Decoder, Sampling
from pdecode.families import masked
from pdecode.knobs import Count, MaskedModel, Temperature
from pdecode.rules import commit


def surest(
    model: MaskedModel, *, max_new_tokens: Count, temperature: Temperature = 0.0
) -> Decoder:
    """One position a step.

    Guarantee: exact at one token a step.
    Cost: a call of the whole canvas a token.
    """
    return masked.masked_diffusion(
        model,
        commit.one_by_one(commit.order("max_prob")),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
    )
'''


@pytest.mark.thorough
def test_a_new_method_touches_three_files(tmp_path):
    """Its own file, its folder's list and its folder's cases; every invariant runs."""
    copy = tmp_path / "project"
    skipped = shutil.ignore_patterns(".git", "__pycache__", "results", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=skipped)
    folder = copy / "pdecode" / "methods" / "masked"
    (folder / "surest.py").write_text(METHOD)
    listed = (folder / "__init__.py").read_text()
    listed = listed.replace(
        "\n__all__ = [\n",
        "from pdecode.methods.masked.surest import surest\n\n"
        '__all__ = [\n    "surest",\n',
    )
    (folder / "__init__.py").write_text(listed)
    cases = copy / "tests" / "cases" / "masked.py"
    cases.write_text(
        cases.read_text().replace(
            "CASES = {\n",
            'CASES = {\n    "surest": case("surest", "lossy", **ON_MASKS),\n',
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_methods.py",
         "-k", "surest or table_holds", "-m", "thorough or not thorough"],
        cwd=copy, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 8, done.stdout[-500:]


def test_cases_that_wait_are_cases_of_tests():
    for file, tests in default_cases.BY_DEFAULT.items():
        text = (ROOT / "tests" / file).read_text()
        assert not [name for name in tests if f"def {name}(" not in text], file
