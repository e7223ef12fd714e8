"""Where compiled programs, and measured costs of calls, are kept between runs."""

import hashlib
import os
import pathlib
import platform
import re
import sys


def folder() -> str:
    """The folder of compiled programs for this user and this kind of processor.

    JAX_COMPILATION_CACHE_DIR if it is set, else in the user's cache folder.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return chosen or str(_base() / f"programs-{_processor()}")


def curves() -> pathlib.Path:
    """The folder of what `compare` measured of single calls."""
    return _base() / f"curves-{_processor()}"


def _base() -> pathlib.Path:
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif os.name == "nt":
        base = pathlib.Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        chosen = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        # By its own rules the variable counts only with an absolute path.
        base = chosen if chosen.is_absolute() else home / ".cache"
    return base / "pdecode"


def enable(min_seconds: float = 0.1) -> None:
    """Makes JAX keep programs there that took `min_seconds` to compile."""
    import jax

    jax.config.update("jax_compilation_cache_dir", folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def mend(warning: str) -> bool:
    """Removes damaged entries, if `warning` is JAX's about one; whether it is.

    JAX compiles again, but would leave the damaged file where it is for ever.
    """
    found = re.match(r"Error reading persistent compilation cache .*'(\S+)':", warning)
    if not found:
        return False
    # Not public; where it has gone, the entry stays and is compiled every time.
    from jax._src import compilation_cache

    for path in pathlib.Path(folder()).glob(f"{found[1]}-*-cache"):
        try:
            whole = compilation_cache.decompress_executable(path.read_bytes())
            compilation_cache.extract_executable_and_time(whole)
        except Exception:  # whatever the decompressor says
            path.unlink(missing_ok=True)
    return True


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
