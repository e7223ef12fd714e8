"""Where compiled programs are kept between runs of the command line."""

import hashlib
import os
import pathlib
import platform
import sys


def folder() -> str:
    """The folder of compiled programs for this user and this kind of processor.

    JAX_COMPILATION_CACHE_DIR if it is set, else in the user's cache folder.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return chosen
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif os.name == "nt":
        base = pathlib.Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return str(base / "pdecode" / f"programs-{_processor()}")


def enable(min_seconds: float = 0.1) -> None:
    """Makes JAX keep programs there that took `min_seconds` to compile."""
    import jax

    jax.config.update("jax_compilation_cache_dir", folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """Names what compiled CPU code depends on: a home may be shared by machines."""
    facts = platform.machine() + platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            wanted = ("model name", "flags", "Features")
            facts += "".join({line for line in file if line.startswith(wanted)})
    except OSError:
        pass
    return hashlib.sha256("".join(sorted(facts)).encode()).hexdigest()[:8]
