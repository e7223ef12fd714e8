"""A run's folder: whose it is, which run it holds, and what is finished in it.

run.lock       held by the process that writes here, from its first second
config.json    the settings, and hashes of the texts and weights they name
checkpoints/   the last states
metrics.jsonl  a line an evaluation
weights.safetensors, weights.json   the result
model/         of heads that were trained with their target, that one's
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pdecode import files

CONFIG, METRICS, WEIGHTS, RECORD = (
    "config.json",
    "metrics.jsonl",
    "weights.safetensors",
    "weights.json",
)
CHECKPOINTS = "checkpoints"
# May differ between a run and its resumption: they do not change the past.
FREE = (
    "checkpoint_every",
    "eval_every",
    "eval_rows",
    "data_dir",
    "start_from",
    "frozen",
)
# May differ as far as they only concern steps that are still to come.
PLAN = ("steps", "decay_steps", "long_steps")
# May differ after a stop over a loss or gradient that was not finite.
REMEDIES = ("learning_rate", "clip_norm", "skip_steps")


@contextlib.contextmanager
def claimed(workdir: pathlib.Path) -> Iterator[None]:
    """The folder, made if need be, as this process's alone while the block runs.

    The system lets go of the lock when the process ends, however it ends. Raises
    ValueError, naming host, process and time, where another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "run.lock"
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise ValueError(
                f"{workdir} belongs to a run that is going on ({owner}): wait for it, "
                "or choose another --out"
            ) from None
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        lock.flush()
        yield
        lock.truncate(0)


def clear(workdir: pathlib.Path) -> None:
    """Removes what a run wrote, and nothing else."""
    for name in (CONFIG, METRICS, WEIGHTS, RECORD):
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)


def read_json(path: pathlib.Path) -> dict | None:
    """What a file holds, or None without one; ValueError, naming it, if damaged."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        what = "empty" if not text.strip() else "damaged"
        raise ValueError(
            f"{path} is {what}, so its run is not known: start it anew with "
            "--overwrite, or choose another --out"
        )
    return found


def dumps(value: Any, **options: Any) -> str:
    """JSON in which what is no finite number is null."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: pathlib.Path, value: dict) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, (dumps(value, indent=1) + "\n").encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with files.replacing(path) as file:
        file.write(content)


class Opened(NamedTuple):
    """What a run's folder holds for it."""

    content: dict  # of config.json, from now on
    finished: dict | None = None  # the record, where nothing is left to do


def opened(workdir: pathlib.Path, mine: dict, latest: int) -> Opened:
    """The folder for the run `mine`, whose newest checkpoint is of step `latest`.

    Raises ValueError where it holds another run, or a result that would be lost.
    """
    theirs, record = read_json(workdir / CONFIG), read_json(workdir / RECORD)
    if theirs is None:
        if record is not None or latest:
            what = "finished weights" if record is not None else "checkpoints"
            raise ValueError(
                f"{workdir} holds {what} of a run without its config.json: choose "
                "another --out, or --overwrite it"
            )
        return Opened(mine)
    stopped_at = theirs.get("stopped_at")
    differ = differing(mine, theirs, latest, stopped_at)
    if differ:
        raise ValueError(
            f"{workdir} holds a run with other settings ({'; '.join(differ)}): choose "
            "another --out, or --overwrite it"
        )
    if record is not None and record.get("steps") == mine["steps"]:
        return Opened(theirs, record)
    if record is not None and not latest:
        raise ValueError(
            f"{workdir} holds finished weights of {record.get('steps')} steps and no "
            "checkpoint to go on from: choose another --out, or --overwrite it"
        )
    changed = {
        name: [theirs.get(name), mine.get(name)]
        for name in (*PLAN, *REMEDIES)
        if name in theirs and theirs[name] != mine.get(name)
    }
    changes = list(theirs.get("changes", []))
    if changed:
        changes.append({"step": latest, **changed})
    content = {**mine, "changes": changes}
    if stopped_at is not None:
        content["stopped_at"] = stopped_at
    return Opened(content)


def differing(mine: dict, theirs: dict, done: int, stopped_at: int | None) -> list[str]:
    """Fields, with both values, in which a run is not the one that was begun.

    `done` steps are in its last checkpoint; `stopped_at` is the step that was not
    finite, where the run stopped over one.
    """
    free = set(FREE)
    if all(mine.get(name) == theirs.get(name) for name in PLAN) or _same_past(
        mine, theirs, done
    ):
        free |= set(PLAN)
    if stopped_at is not None and stopped_at == done:
        free |= set(REMEDIES)
    elif [s for s in mine.get("skip_steps", ()) if s < done] == [
        s for s in theirs.get("skip_steps", ()) if s < done
    ]:
        free.add("skip_steps")
    found = []
    for name in sorted({*mine, *theirs} - free - {"changes", "stopped_at"}):
        here, there = mine.get(name), theirs.get(name)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            for field in sorted({*here, *there}):
                if here.get(field) != there.get(field):
                    pair = (here.get(field), there.get(field))
                    found.append(f"{name}.{field}: {pair[0]!r} here, {pair[1]!r} there")
        else:
            found.append(f"{name}: {here!r} here, {there!r} there")
    return found


def _same_past(mine: dict, theirs: dict, done: int) -> bool:
    """A constant rate up to here is the same run, whatever its length."""
    if mine.get("schedule") != "stable" or theirs.get("schedule") != "stable":
        return False
    ends = [c["steps"] - max(c["decay_steps"], c["long_steps"]) for c in (mine, theirs)]
    return done <= min(ends)


def keep_metrics(workdir: pathlib.Path, done: int) -> float:
    """Drops lines of steps that are to be done again; the seconds spent before them."""
    path = workdir / METRICS
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if found["step"] <= done:
            kept.append((line, found["seconds"]))
    write_bytes(path, "".join(line + "\n" for line, _ in kept).encode())
    return kept[-1][1] if kept else 0.0


def set_aside(workdir: pathlib.Path) -> None:
    """Keeps a finished result beside that of the longer run that went on from it."""
    record = read_json(workdir / RECORD)
    if record is None:
        return
    for name in (WEIGHTS, RECORD):
        stem, suffix = name.split(".")
        (workdir / name).replace(workdir / f"{stem}.{record['steps']}.{suffix}")
