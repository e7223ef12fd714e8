"""Notebooks: both forms say the same, and their cells run in order."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
_spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
NAMES = [path.stem for path in build.texts()]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_its_text(name):
    path = FOLDER / f"{name}.py"
    written = path.with_suffix(".ipynb").read_text()
    assert written == build.notebook(path), "run python notebooks/build.py"
    cells = json.loads(written)["cells"]
    assert cells[0]["cell_type"] == "markdown" and "colab" in cells[0]["source"][0]
    assert "pip" in "".join(cells[1]["source"])  # installs itself, first of all


def test_there_are_seven():
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(1, 8)]


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_its_cells_run(name, tmp_path):
    """In a process of its own, as a kernel would; a value alone on a line is shown."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = str(FOLDER.parent)
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")], cwd=tmp_path, timeout=600,
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
