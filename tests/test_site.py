"""The site builds without a warning, and its pages say what is there."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import warnings

import pytest

from pdecode import methods
from pdecode.cli import main as cli

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_methods_that_are_recommended_exist():
    text = (ROOT / "docs" / "choosing.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    named = set(re.findall(r"`([a-z_0-9]+)`", "\n".join(rows))) - {"order"}
    assert len(named) > 15 and named <= set(methods.__all__), named


def test_commands_that_are_told_exist():
    """Every `pdecode WORD` of the pages is a command."""
    known = set()
    for action in cli.parser()._actions:
        known |= set(getattr(action, "choices", None) or ())
    for path in PAGES:
        text = path.read_text()
        code = re.findall(r"^```\n(.*?)^```|`(pdecode[^`]*)`", text, re.S | re.M)
        told = re.findall(r"\bpdecode ([a-z]+)\b", "\n".join(map("".join, code)))
        assert set(told) <= known, path


@pytest.mark.thorough
def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("sphinx") is None:
        why = "THE SITE WAS NOT BUILT: sphinx is missing (pip install -e '.[docs]')"
        warnings.warn(why, stacklevel=1)
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "_notebooks" / "01_first_decode.html").exists()
