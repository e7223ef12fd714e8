"""The site: sphinx-build -W -b html docs docs/_build, with the extra "docs"."""

import pathlib
import shutil
import sys

project = "pdecode"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "examples"]
html_title = "pdecode"
html_static_path = []
myst_heading_anchors = 3
# Notebooks run in their test; here they are shown as they are written.
nb_execution_mode = "off"
autodoc_typehints = "none"
# Single backticks are code.
default_role = "code"

# Sources must lie in this folder: notebooks are copied beside the pages.
_here = pathlib.Path(__file__).parent
_to = _here / "_notebooks"
_to.mkdir(exist_ok=True)
for _path in sorted((_here.parent / "notebooks").glob("*.ipynb")):
    shutil.copy(_path, _to / _path.name)

# A page for every method and every family, from their docstrings.
sys.path.insert(0, str(_here.parent))
from pdecode.methods import page  # noqa: E402

for _name, _text in page.site().items():
    _path = _here / "_pages" / _name
    _path.parent.mkdir(parents=True, exist_ok=True)
    _path.write_text(_text)
