"""Parallel decoding in JAX: methods behind one interface, counted honestly.

    pdecode.generate("def fib(n):", method="llada")     a prompt to text
    pdecode.compare(["prompt_lookup", my_method])       methods raced and counted
    pdecode.sweep("llada", prompts, steps=[8, 16])      one method over its knobs
    pdecode.check(my_rule)                              what a part of yours keeps
    pdecode.run(method, model, params, prompt, key)     the program behind both
    pdecode.load("target"), pdecode.from_rows(rows)     what it takes

Everything here is imported when it is first used, so that `import pdecode` is quick.
Modules are names too: `pdecode.methods`, and those that methods are composed of,
`pdecode.commit` or `pdecode.windows`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pdecode.version import __version__ as __version__

if TYPE_CHECKING:
    from pdecode.checks.api import check as check
    from pdecode.contracts import Decoder as Decoder
    from pdecode.contracts import Drafter as Drafter
    from pdecode.contracts import Generation as Generation
    from pdecode.contracts import Model as Model
    from pdecode.contracts import Prompt as Prompt
    from pdecode.contracts import Rule as Rule
    from pdecode.contracts import Sampling as Sampling
    from pdecode.decode import Stats as Stats
    from pdecode.decode import run as run
    from pdecode.decode import stream as stream
    from pdecode.decode import with_trace as with_trace
    from pdecode.evals.compare import compare as compare
    from pdecode.evals.sweep import sweep as sweep
    from pdecode.generation import generate as generate
    from pdecode.generation import load as load
    from pdecode.methods.variants import resolve as resolve
    from pdecode.prompts import from_rows as from_rows
    from pdecode.results import texts as texts

# Where each public name lives; a module of the package is reached by its own name, and
# those that methods are composed of also by their last name.
_HOMES = {
    "Decoder": "contracts",
    "Drafter": "contracts",
    "Generation": "contracts",
    "Model": "contracts",
    "Prompt": "contracts",
    "Rule": "contracts",
    "Sampling": "contracts",
    "Stats": "decode",
    "check": "checks.api",
    "compare": "evals.compare",
    "from_rows": "prompts",
    "generate": "generation",
    "load": "generation",
    "resolve": "methods.variants",
    "run": "decode",
    "stream": "decode",
    "sweep": "evals.sweep",
    "texts": "results",
    "with_trace": "decode",
}
_MODULES = {
    "accept": "rules",
    "blocks": "rules",
    "commit": "rules",
    "frontier": "families",
    "guidance": "rules",
    "masked": "families",
    "orders": "rules",
    "remask": "rules",
    "schedules": "rules",
    "speculative": "families",
    "windows": "rules",
}
# Public, at the top of the package.
_ROOMS = ("contracts", "decode", "knobs", "methods", "prompts", "rng", "trees")

__all__ = [*_HOMES, *_MODULES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'pdecode' has no attribute {name!r}")
    if name in _HOMES:
        found = getattr(importlib.import_module(f"pdecode.{_HOMES[name]}"), name)
    else:
        home = (
            f"pdecode.{_MODULES[name]}.{name}"
            if name in _MODULES
            else f"pdecode.{name}"
        )
        try:
            found = importlib.import_module(home)
        except ModuleNotFoundError as error:
            if error.name != home:
                raise
            from pdecode import names

            raise AttributeError(
                f"module 'pdecode' has no attribute {name!r}{names.near(name, __all__)}"
            ) from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
