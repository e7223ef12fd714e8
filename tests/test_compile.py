"""What `pdecode compile` keeps is found by a later process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pdecode import prompts

ROOT = pathlib.Path(__file__).parent.parent
OPTIONS = (
    "--model", str(ROOT / "tests" / "golden" / "llada_tiny"), "--method", "llada",
    "--set", "steps=4", "--max-new-tokens", "8",
)  # fmt: skip
# The command line, then how many of its programs came from the cache on disk.
PROGRAM = """
import sys
from pdecode import programs
from pdecode.cli import main as cli
assert cli.main(sys.argv[1:]) == 0
print([made.num_cached for made in programs._kept.values()])
"""


def run(folder, *arguments) -> list[str]:
    """Lines that a process of its own prints."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.thorough
def test_generate_finds_what_compile_kept(tmp_path):
    sizes = ("--prompt-len", "5", "--batch-size", "2")
    made = run(tmp_path, "compile", *OPTIONS, *sizes)
    assert made[0].startswith("llada (steps 4, max_new_tokens 8) for ")
    assert made[0].endswith("llada_tiny, batch size 2")
    assert made[1] == "batches whose longest prompt has 1 to 16 tokens"
    assert made[2].startswith("2 programs in ")
    assert made[2].endswith(" s, 0 kept from before")
    assert made[3] == f"kept in {tmp_path}" and made[4] == "[0]"
    kept = {path.name for path in tmp_path.iterdir()}
    assert {name.split("-")[0] for name in kept} >= {"jit__start", "jit__loop"}

    # Other lengths, another seed and another temperature.
    *shown, num_cached = run(
        tmp_path, "generate", *OPTIONS, "--json", "--seed", "3", "--temperature", "0.5",
        "--prompt-ids", "[[1,2,3],[4,5,6,7,8,9,10,11]]",
    )  # fmt: skip
    assert len(json.loads(shown[0])["tokens"]) == 2
    assert num_cached == "[2]"


@pytest.mark.parametrize("width", [1, 15, 16, 17, 100, 128, 129, 257, 513, 1000, 4097])
def test_buckets_are_few_and_near(width):
    found = prompts.bucket(width)
    assert found >= width and found == prompts.bucket(found)
    assert found - width < max(16, width / 8)
    few = {prompts.bucket(each) for each in range(1, width + 1)}
    assert len(few) <= 8 + 8 * max(width.bit_length() - 7, 0)
