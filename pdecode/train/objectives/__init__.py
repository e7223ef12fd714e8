"""What a run can train, one objective a file.

A file ends in `OBJECTIVE`, a `pdecode.train.objective.Objective`; the list below is all
that has to know of it. Nothing else asks which one it is.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from pdecode.train import adapters
from pdecode.train import objective as record
from pdecode.train.objective import Objective

NAMES = (
    "autoregressive",
    "masked_diffusion",
    "blockwise_heads",
    "any_order",
    "eagle",
    "eagle3",
    "jakiro",
    "falcon",
    "medusa",
    "medusa2",
    "hydra",
    "ppd",
    "mtp",
    "clover",
    "amphista",
    "hidden_transfer",
    "koala",
    "certainty",
    "block_filter",
    "consistency",
    "distillation",
    "sorted_exits",
    "spec_vlm",
    "distilled_decoding",
    "frame_diffusion",
    "set_block",
    "jacobi_denoising",
    "staged_flow",
    "film_chunks",
    "flash",
    "dream_vlm",
    "judge",
    "glancing",
    "space",
    "lud",
    "refining",
    "grpo",
)


def find(name: str) -> Objective:
    """The objective of a name; ValueError, with the known ones, for any other."""
    if name not in NAMES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}").OBJECTIVE


def of(config: Any) -> Objective:
    """The objective of a run: over adapters where the run trains those."""
    found = find(config.objective)
    return found if config.adapters is None else adapters.over(found, config.adapters)


def owners() -> dict[str, list[str]]:
    """Names of options, each with the objectives that have it."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        for field in dataclasses.fields(find(name).options):
            found.setdefault(field.name, []).append(name)
    return found


def options(name: str, given: Any) -> Any:
    """The `Options` of an objective out of a mapping, or out of an equal record.

    Options of another objective that nobody has changed give way to the own defaults.
    Raises ValueError, naming the option, for what the objective does not have.
    """
    kind = find(name).options
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        if given == type(given)():
            return kind()
        given = dataclasses.asdict(given)
    if not isinstance(given, Mapping):
        raise ValueError(f"options={given!r} must be a mapping of names to values")
    known = [field.name for field in dataclasses.fields(kind)]
    for field in given:
        if field not in known:
            listed = ", ".join(known) or "it has none"
            raise ValueError(
                f"{field} is no option of objective={name}; known: {listed}"
            )
    return kind(**given)


def check(config: Any) -> None:
    """ValueError, naming the field, where the model is not what the objective needs."""
    record.check(config.objective, find(config.objective).needs, config)
