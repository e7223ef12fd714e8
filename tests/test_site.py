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
from pdecode.methods import page

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
    assert len(named) > 15 and named <= {*methods.__all__, *methods.VARIANTS}, named


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


def test_every_method_and_family_has_a_page():
    pages = page.site()
    for name in methods.__all__:
        assert f"methods/{name}.md" in pages
    text = pages["methods/fast_dllm.md"]
    assert "arXiv:2505.22618" in text and "(../families/masked.md)" in text
    family = pages["families/masked.md"]
    steps = re.findall(r"^\d+\. (\w+): ", family, re.M)
    assert ["look", "evaluate", "predict", "commit_some"] == [
        each for each in steps if each in ("look", "evaluate", "predict", "commit_some")
    ]
    assert "(../methods/fast_dllm.md)" in family
    for path, text in pages.items():
        for target in re.findall(r"\]\(\.\./([^)]+)\)", text):
            assert target in pages, (path, target)


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
    assert (tmp_path / "_pages" / "methods" / "fast_dllm.html").exists()
