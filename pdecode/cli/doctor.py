"""Is this installation sound: versions, devices, memory, weights, and one decode."""

import os
import tempfile

import jax

from pdecode import generation
from pdecode.cli import outcome, program_cache


def check() -> tuple[list[str], bool]:
    """Lines to print, and whether everything works."""
    lines, is_well = [], True
    for name, version in outcome.versions().items():
        lines.append(f"{name:10} {version}")
    for device in jax.devices():
        lines.append(f"device     {device.id}: {device.platform}, {device.device_kind}")
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            used, limit = stats.get("bytes_in_use", 0), stats["bytes_limit"]
            lines.append(
                f"memory     {used / 2**30:.2f} of {limit / 2**30:.2f} GiB used"
            )
    lines.append(f"cores      {os.cpu_count()}, host memory {_host_memory()}")
    folder = program_cache.folder()
    lines.append(f"cache      {folder}: {_writable(folder)}")
    for name in ("target", "drafter", "heads", "diffusion"):
        try:
            _, params, _ = generation.load(name)
        except ValueError as error:
            lines.append(f"weights    {error}")
            is_well = False
            continue
        num = sum(leaf.size for leaf in jax.tree.leaves(params))
        lines.append(f"weights    {name}: {num:,} parameters")
    if is_well:
        made = generation.generate("def main(", max_new_tokens=32)
        rate = made.stats["committed"][0] / made.timing["decode_s"]
        timing = ", ".join(f"{k} {v:.3f}" for k, v in made.timing.items())
        lines.append(f"decode     {made.stats['committed'][0]} tokens, {timing}")
        lines.append(f"           {rate:.0f} tokens a second")
        lines.append(f"           {made.text[0]!r}")
    lines.append("everything works" if is_well else "something is wrong: see above")
    return lines, is_well


def _host_memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return "unknown"
    return f"{pages / 2**30:.1f} GiB"


def _writable(folder: str) -> str:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return "writable"
    except OSError as error:
        return f"not writable ({error.strerror}); programs are compiled every time"
