"""A write that fails leaves what was there."""

import numpy as np
import pytest

from pdecode import files
from pdecode.checkpoints import tensors
from pdecode.cli import bench
from pdecode.data import packing


class Lost:
    """An array whose values cannot be read when they are wanted."""

    dtype, shape, size = np.dtype(np.float32), (2,), 2

    def __array__(self, dtype=None, copy=None):
        raise OSError("lost")


def write_plainly(path, monkeypatch):
    with files.replacing(path) as file:
        file.write(b"half")
        raise OSError("lost")


def write_tokens(path, monkeypatch):
    def save(file, tokens):
        file.write(b"half")
        raise OSError("lost")

    monkeypatch.setattr("numpy.save", save)
    packing.save(path, np.zeros(3, np.uint16))


def write_tensors(path, monkeypatch):
    tensors.write(path, {"a": np.zeros(2, np.float32), "b": Lost()})


def write_measurements(path, monkeypatch):
    monkeypatch.setattr(bench, "_loop", lambda *_: {"cases": [Lost()]})
    bench.run("loop", 1, 1, str(path))


@pytest.mark.parametrize(
    "write", [write_plainly, write_tokens, write_tensors, write_measurements]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    write, tmp_path, monkeypatch
):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with pytest.raises((OSError, TypeError), match=r"lost|Lost"):
        write(path, monkeypatch)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_write_that_ends_takes_the_place(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with files.replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(bench, "_loop", lambda *_: {"cases": [1]})
    bench.run("loop", 1, 1, str(path))
    assert b'"cases"' in path.read_bytes()
