"""The running interpreter's standard library as a code corpus: files, split, documents.

A document is one top-level function or class, or one run of other top-level
statements, with the comments above it; so a model that ends documents with EOS ends
functions. The split is by hash of the path relative to the library, which makes it
independent of the machine; the sources differ between Python versions.
"""

import ast
import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator

# Embedded for evaluation (pdecode/data/heldout), so never trained on, in any version.
HELDOUT_PATHS = (
    "bisect.py",
    "colorsys.py",
    "csv.py",
    "fnmatch.py",
    "glob.py",
    "graphlib.py",
    "queue.py",
    "reprlib.py",
    "sched.py",
    "shlex.py",
    "textwrap.py",
    "timeit.py",
)
# Third-party code, and folders that hold tests or generated tables instead of code.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",
        "idle_test",
        "lib-dynload",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
)
VALIDATION_FRACTION = 0.05


def library_root() -> pathlib.Path:
    """Folder of the running interpreter's standard library."""
    return pathlib.Path(sysconfig.get_paths()["stdlib"])


def split_of(relative_path: str) -> str:
    """ "heldout", "validation" or "train" for a path relative to the library."""
    if relative_path in HELDOUT_PATHS:
        return "heldout"
    digest = hashlib.sha256(relative_path.encode()).digest()
    fraction = int.from_bytes(digest[:4], "big") / 2**32
    return "validation" if fraction < VALIDATION_FRACTION else "train"


def sources(split: str, root: pathlib.Path | None = None) -> Iterator[tuple[str, str]]:
    """(relative path, text) of a split's files, in the order of their path's hash.

    Files that are not UTF-8 are left out. Raises ValueError for an unknown split.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"unknown split {split!r}; known: train, validation")
    root = library_root() if root is None else root
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    names = [p.as_posix() for p in paths if not SKIPPED_FOLDERS & set(p.parts)]
    for name in sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest()):
        if split_of(name) != split:
            continue
        try:
            yield name, (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue


def documents(text: str) -> list[str]:
    """Cuts a Python file at its top-level definitions; a file ast refuses stays whole.

    Every document ends with one newline; blank lines between documents are dropped.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return [text.strip("\n") + "\n"] if text.strip() else []
    lines = text.split("\n")
    stops = []  # last line of each document, counted from one
    was_definition = True
    for node in body:
        is_definition = isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        )
        last = node.lineno if node.end_lineno is None else node.end_lineno
        # A statement joins the run of statements before it; so does a second statement
        # on a line that is already taken.
        shares_line = stops and node.lineno <= stops[-1]
        if stops and (shares_line or not (is_definition or was_definition)):
            stops[-1] = max(stops[-1], last)
        else:
            stops.append(last)
        was_definition = is_definition
    starts = [0, *stops][: len(stops)]
    if stops:
        stops[-1] = len(lines)  # trailing comments stay with the last document
    chunks = ["\n".join(lines[a:b]).strip("\n") for a, b in zip(starts, stops)]
    return [chunk + "\n" for chunk in chunks if chunk.strip()]
