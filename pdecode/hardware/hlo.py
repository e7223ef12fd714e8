"""Reading compiled programs as text: collectives, kernels, what the loop carries."""

import collections
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "token": 0, "bf16": 16}

_HEADER = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = (.*?) ([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
# Lines without any of these are passed over: programs of large models have a million.
_READ = (
    *COLLECTIVES,
    "while(",
    "tpu_custom_call",
    "scatter(",
    "dynamic-update-slice(",
    "AsyncCollectiveDone",
)


_TURNS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_BODY = re.compile(r"body=%([\w.-]+)")
# Instructions that launch nothing.
_SILENT = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "add-dependency", "opt-barrier", "partition-id", "replica-id",
}  # fmt: skip


class Collective(NamedTuple):
    """Equal collectives of a program. Sizes are of the result on one device."""

    kind: str
    shape: str  # such as bf16[8,256,512]; several joined by " + "
    bytes: int
    count: int
    in_loop: bool


class Program(NamedTuple):
    """What was read from one compiled program."""

    collectives: list[Collective]
    carried_bytes: int  # of the loop, on one device, weights included
    mosaic_calls: dict[str, int]  # {"loop": n, "before": n}
    cache_writes: dict[str, int]  # kind of write -> number in the loop


def read(text: str) -> Program:
    """Reads `compiled.as_text()`.

    A collective that runs beside other work is spread over several fusions; it is
    counted where it starts. The loop is the one that holds most of the program: others
    are inside it.
    """
    bodies = _computations(text)
    called = {
        name: [each for line in lines for each in _called(line)]
        for name, lines in bodies.items()
    }
    bodies = {
        name: [line for line in lines if any(word in line for word in _READ)]
        for name, lines in bodies.items()
    }
    inside: set[str] = set()
    carried = 0
    for lines in bodies.values():
        for line in lines:
            found = _INSTRUCTION.match(line) if " while(" in line else None
            if found and found[2] == "while":
                reached = _reached(called, line)
                if len(reached) > len(inside):
                    inside, carried = reached, _bytes(found[1])
    counts: collections.Counter = collections.Counter()
    mosaic = {"loop": 0, "before": 0}
    writes: collections.Counter = collections.Counter()
    for name, lines in bodies.items():
        in_loop = name in inside
        is_middle = name.startswith("async_collective_fusion") or any(
            "AsyncCollectiveDone" in line for line in lines
        )
        for line in lines:
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            result, kind = found[1], found[2].removesuffix("-start")
            if kind in COLLECTIVES and not is_middle:
                shapes = _shapes(result)
                if found[2].endswith("-start"):
                    shapes = [max(shapes, key=_size)]
                label = " + ".join(f"{t}[{','.join(map(str, d))}]" for t, d in shapes)
                counts[kind, label, sum(map(_size, shapes)), in_loop] += 1
            elif "tpu_custom_call" in line and kind == "custom-call":
                mosaic["loop" if in_loop else "before"] += 1
            elif in_loop and kind in ("scatter", "dynamic-update-slice"):
                # Keys and values are the only 16-bit state that a loop writes into.
                if any(t == "bf16" for t, _ in _shapes(result)):
                    writes[kind] += 1
    listed = [
        Collective(kind, shape, size, count, in_loop)
        for (kind, shape, size, in_loop), count in counts.items()
    ]
    listed.sort(key=lambda each: (not each.in_loop, -each.bytes, each.kind))
    return Program(listed, carried, mosaic, dict(writes))


def num_kernels(compiled: Any) -> int:
    """Kernels and copies that one run of a compiled program launches on a GPU.

    Read from its text: every instruction that is no bookkeeping counts once, those of a
    loop as often as the compiler says that it turns (once if it does not say), and of
    branches the longest counts. It is a bound from below: a library may launch two for
    one product. Elsewhere than on a GPU it counts instructions that run by themselves.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    bodies = _computations(text)
    entry = next(line for line in text.splitlines() if line.startswith("ENTRY"))

    def count(name: str) -> int:
        return sum(_launches(line, count) for line in bodies.get(name, ()))

    return count(entry.split()[1].lstrip("%"))


def _launches(line: str, count: Callable[[str], int]) -> int:
    """Kernels that the instruction in `line` launches."""
    found = _INSTRUCTION.match(line)
    if not found or found[2] in _SILENT or found[2].endswith(("-done", "-update")):
        return 0
    if found[2] == "while":
        turns = _TURNS.search(line)
        body, rest = _BODY.findall(line), _called(line)
        # Of a loop that is known to turn so often nobody asks if it goes on.
        return int(turns[1]) * sum(map(count, body)) if turns else sum(map(count, rest))
    if found[2] == "conditional":
        return max(map(count, _called(line)))
    # A graph of kernels is a call in a program for GPUs.
    return sum(map(count, _called(line))) if found[2] == "call" else 1


def custom_calls(text: str) -> dict[str, int]:
    """Custom calls in lowered StableHLO by their target."""
    found = re.findall(r"stablehlo\.custom_call @(\S+?)\(", text)
    inner = re.compile(r"Sharding|shard")
    return dict(collections.Counter(x for x in found if not inner.search(x)))


def _computations(text: str) -> dict[str, list[str]]:
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = bodies[header[1]] = []
        else:
            lines.append(line)
    return bodies


def _reached(called: dict[str, list[str]], line: str) -> set[str]:
    """Names of the computations that `line` calls, and what they call."""
    waiting, found = _called(line), set()
    while waiting:
        name = waiting.pop()
        if name not in found and name in called:
            found.add(name)
            waiting += called[name]
    return found


def _called(line: str) -> list[str]:
    if "=%" not in line and "computations={" not in line:
        return []
    names = _CALLED.findall(line)
    for group in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def _shapes(result: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in _SHAPE.findall(result)
    ]


def _size(shape: tuple[str, Any]) -> int:
    kind, sizes = shape
    digits = re.search(r"\d+", kind)
    bits = _BITS.get(kind, int(digits[0]) if digits else 8)
    return math.prod(sizes) * bits // 8


def _bytes(result: str) -> int:
    return sum(_size(shape) for shape in _shapes(result))
