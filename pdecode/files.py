"""Files that are there whole or not at all, and the objects of JSON files."""

import contextlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

# What numpy raises for a file that is missing, cut off, another kind or no numbers.
UNREADABLE = (
    ValueError, EOFError, OSError, KeyError, AttributeError, TypeError,
    zipfile.BadZipFile,
)  # fmt: skip


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends.

    If the block raises, or the process dies in it, what was at `path` stays. Raises
    OSError where the folder is missing or may not be written.
    """
    path = pathlib.Path(path)
    # In the same folder, so that the last step is a rename and not a copy.
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_object(path: str | os.PathLike) -> dict:
    """The JSON object in a file, {} if there is none; ValueError if it is damaged."""
    path = pathlib.Path(path)
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return value
