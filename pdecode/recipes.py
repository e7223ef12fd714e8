"""A method by its name, by the place of its code, or as the function itself."""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from pdecode import knobs
from pdecode.methods import variants

ROLES = (
    "model", "drafter", "heads", "chained_heads", "layer", "modules", "filter",
    "prompt_tokens", "block_layer", "transfer",
)  # fmt: skip


class Recipe(NamedTuple):
    """A method and the settings that its name implies."""

    name: str  # what it was asked for by
    method: Callable
    settings: dict[str, Any]
    is_own: bool  # not one of the package's

    @property
    def label(self) -> str:
        """The name without the place of the code."""
        return self.name.rpartition(":")[2]


def find(method: str | Callable) -> Recipe:
    """The method that is meant.

    A name is one of `pdecode.methods` or a configuration, "file.py:name" or
    "package.module:name". Raises ValueError, naming the method and the argument, for
    what is not there and for a function that is no method.
    """
    if callable(method):
        name = getattr(method, "__name__", repr(method))
        is_ours = getattr(method, "__module__", "").startswith("pdecode.methods")
        return _checked(Recipe(name, method, {}, not is_ours))
    if ":" in method:
        place, _, name = method.rpartition(":")
        found = located(method)
        if not callable(found):
            raise ValueError(f"{method}: {place} has no function {name!r}")
        return _checked(Recipe(method, found, {}, True))
    return Recipe(method, *variants.resolve(method), False)


def _checked(recipe: Recipe) -> Recipe:
    """`recipe`, if its signature is that of a method."""
    try:
        roles = knobs.roles(recipe.method)
        known = knobs.parameters(recipe.method)
    except (TypeError, NameError) as error:
        raise ValueError(f"{recipe.name} is no method: {error}") from None
    wrong = [role for role in roles if role not in ROLES]
    if wrong or roles[:1] != ("model",):
        raise ValueError(
            f"{recipe.name} is no method: its models must be called "
            f"{', '.join(ROLES)}, the first one model, and all else stand behind a *, "
            f"but it begins with {', '.join(roles) or 'none'}"
        )
    if "max_new_tokens" not in known:
        raise ValueError(
            f"{recipe.name} is no method: it takes no max_new_tokens; known: "
            f"{', '.join(known) or 'nothing'}"
        )
    return recipe


def located(where: str) -> Any:
    """What stands at "file.py:name" or "module:name"; ValueError if nothing does."""
    place, _, name = where.rpartition(":")
    try:
        if place.endswith(".py"):
            path = os.path.abspath(place)
            module = _file(path, os.stat(path).st_mtime_ns)
        else:
            module = importlib.import_module(place)
    except OSError as error:
        raise ValueError(f"{place}:{name}: {error.strerror}") from None
    except ImportError as error:
        raise ValueError(f"{place}:{name}: {error}") from None
    if not hasattr(module, name):
        raise ValueError(f"{place}:{name}: {place} has no function {name!r}")
    return getattr(module, name)


@functools.lru_cache
def _file(path: str, written: int):
    """The module in a file; once, so that its functions keep their programs."""
    del written
    name = f"pdecode_own_{os.path.basename(path)[:-3]}_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
