"""The Python blocks of the documents run as they stand, in order, file by file."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_run_and_print_what_they_say(name, capsys):
    text = (ROOT / name).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert blocks
    namespace = {}
    with jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, name, "exec"), namespace)
    said = re.findall(r"^# prints (.*)$", "".join(blocks), re.M)
    assert capsys.readouterr().out.splitlines() == said
