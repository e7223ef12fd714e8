"""What several processes that decode together must have in common."""

import hashlib
import pathlib
from typing import Any

from pdecode import assembly

_OWN = ("process_id", "command", "debug", "json")


def check(args) -> None:
    """ValueError in process 0 where two processes were given, or hold, other things.

    Options, prompts, weights and the package itself are compared before anything is
    computed, by hash where they are long; the others leave quietly.
    """
    if args.coordinator is None:
        return
    from pdecode.sharding import processes

    facts: dict[str, Any] = {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(args).items()
        if name not in _OWN
    }
    for option in ("prompt_file", "prompts"):
        name = getattr(args, option)
        if name is not None:
            what = f"the text of --{option.replace('_', '-')}"
            facts[what] = _hash(pathlib.Path(name))
    for option in ("model", "drafter"):
        name = getattr(args, option)
        if name is not None and option == "drafter":
            name, _ = assembly.parted(name)
        if name is not None and pathlib.Path(name).is_dir():
            facts[f"the weights of --{option}"] = _hash(pathlib.Path(name))
    facts["the version of pdecode"] = processes.code_version()
    processes.agree(facts)


def _hash(path: pathlib.Path) -> str:
    """Of a file, or of all files of a folder with their names; "missing" of neither."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            continue
        digest.update(file.name.encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16] if path.exists() else "missing"
