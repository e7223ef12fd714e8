"""`import pdecode` is quick and takes nothing heavy along."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
import time
from typing import Any

import pytest

import pdecode

HEAVY = (
    "chex",
    "flax",
    "jinja2",
    "matplotlib",
    "optax",
    "orbax",
    "rich",
    "safetensors",
    "tensorflow_datasets",
    "tokenizers",
)


ROOT = pathlib.Path(pdecode.__file__).parent


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "names", ["pdecode", "pdecode, pdecode.decode, pdecode.methods, pdecode.cli"]
)
def test_nothing_heavy_is_imported(names):
    found = run(
        f"import sys, {names}; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert found == "[]"


def test_import_takes_no_time():
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        run("import pdecode")
        seconds.append(time.perf_counter() - began)
        if seconds[-1] < 1.5:
            return
    pytest.fail(f"import pdecode took {min(seconds):.2f} s at best")


def test_public_names_resolve():
    for name in pdecode._HOMES:
        assert getattr(pdecode, name) is not None
    assert callable(pdecode.generate) and callable(pdecode.run)
    assert pdecode.methods.llada.__name__ == "llada"
    assert set(pdecode._HOMES) <= set(dir(pdecode))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pdecode.nothing  # noqa: B018
    assert not hasattr(pdecode, "_repr_html_")


ROLES = [
    f"pdecode.{room}.{each.name}"
    for room in ("rules", "drafters")
    for each in pkgutil.iter_modules([str(ROOT / room)])
] + ["pdecode.contracts", "pdecode.decode", "pdecode.families.masked"]
ROLES += ["pdecode.families.speculative", "pdecode.families.frontier"]


@pytest.mark.parametrize("name", ROLES)
def test_a_role_shows_what_is_its_own(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        found = getattr(module, public)
        if found is not Any and (inspect.isfunction(found) or inspect.isclass(found)):
            assert found.__module__ == name, public
        assert not inspect.isfunction(found) or found.__doc__, public
    # What methods take from it is public.
    short = name.rpartition(".")[2]
    for file in (ROOT / "methods").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                is_its = _imports(file, name) and node.value.id == short
                assert not is_its or node.attr in module.__all__, (file, node.attr)


def _imports(file, name):
    home, _, short = name.rpartition(".")
    # Under its own name: `import heads as head_drafters` leaves `heads` to others.
    text = file.read_text()
    return re.search(rf"from {home} import .*\b{short}\b(?! as)", text)
