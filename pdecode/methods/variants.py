"""Names for methods with settings: `pdecode.methods` has the algorithms themselves.

A configuration is data. It has no code of its own; what it does differently from its
method's defaults is on its line.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pdecode import knobs, methods


class Configuration(NamedTuple):
    """A method's name and the settings that differ from its defaults."""

    method: str
    settings: dict[str, Any]
    about: str


CONFIGURATIONS = {
    "coupled_sampling": Configuration(
        "speculative_sampling",
        {"acceptance": "coupled"},
        "drafter-invariant speculative sampling, Daliri et al., arXiv:2408.07978",
    ),
    "recursive_rejection": Configuration(
        "specinfer",
        {"draws": "without_replacement", "branching": (3, 1, 1)},
        "siblings drawn without replacement, Jeon et al., arXiv:2402.14160",
    ),
    "relaxed_blockwise": Configuration(
        "blockwise",
        {"match_top": 2},
        "a token passes if it is among the target's best two, arXiv:1811.03115",
    ),
    "gs_jacobi": Configuration(
        "jacobi",
        {"block_length": 16, "window": 16},
        "Gauss-Seidel over blocks of 16, Santilli et al., arXiv:2305.10427",
    ),
    "plain_sjd": Configuration(
        "sjd",
        {"transport": "independent"},
        "speculative Jacobi without coupling, Teng et al., arXiv:2410.01699",
    ),
    "gumbel_sjd": Configuration(
        "sjd",
        {"transport": "gumbel"},
        "drafts coupled by shared Gumbel noise, arXiv:2510.24211",
    ),
    "semi_autoregressive": Configuration(
        "llada",
        {"block_length": 32},
        "LLaDA block by block, Nie et al., arXiv:2502.09992",
    ),
    "fast_dllm_threshold": Configuration(
        "fast_dllm",
        {"threshold": 0.9},
        "confidence above 0.9, no cache, Wu et al., arXiv:2505.22618",
    ),
    "fast_dllm_prefix": Configuration(
        "fast_dllm",
        {"threshold": 0.9, "cache": "prefix"},
        "threshold 0.9, cache of what lies before the block",
    ),
    "fast_dllm_dual": Configuration(
        "fast_dllm",
        {"threshold": 0.9, "cache": "dual"},
        "threshold 0.9, cache of all that lies outside the block",
    ),
    "fast_dllm_factor": Configuration(
        "fast_dllm",
        {"factor": 1.0, "cache": "dual"},
        "the factor rule in place of the threshold, dual cache",
    ),
    "dream_entropy": Configuration(
        "dream",
        {"alg": "entropy"},
        "lowest entropy first, Ye et al., arXiv:2508.15487",
    ),
    "remdm_conf": Configuration(
        "remdm",
        {"variant": "conf"},
        "reopens tokens that were unlikely when committed, arXiv:2503.00307",
    ),
    "raster": Configuration(
        "any_order",
        {"order": "raster"},
        "left to right, one position a call",
    ),
}


def known() -> list[str]:
    """Names of all methods, then of all configurations."""
    return [*methods.__all__, *CONFIGURATIONS]


def resolve(name: str) -> tuple[Callable, dict[str, Any]]:
    """The method that `name` means and the settings it implies.

    Raises ValueError listing the known names.
    """
    if name in methods.__all__:
        return getattr(methods, name), {}
    if name in CONFIGURATIONS:
        method, settings, _ = CONFIGURATIONS[name]
        return getattr(methods, method), dict(settings)
    raise ValueError(f"unknown method {name!r}; known: {', '.join(known())}")


def group(method: Callable) -> str:
    """The folder of pdecode.methods that `method` lives in, such as "masked"."""
    return method.__module__.split(".")[-2]


def fitting(kind: str) -> list[str]:
    """Names of the methods whose target has this `Model.predicts`."""
    every = {name: getattr(methods, name) for name in methods.__all__}
    return [n for n, each in every.items() if knobs.needs(each).get("model") == kind]
