"""Weights that a run begins with or reads, by folder or name, each with its hash."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from pdecode.contracts import Params
from pdecode.models import embedded
from pdecode.models.config import Config
from pdecode.train import objectives
from pdecode.train.config import TrainConfig

# How a model is decoded, not what its parameters are: may differ where one begins.
_MAY_CHANGE = (
    "attention",
    "block_len",
    "predicts",
    "shift",
    "mask_id",
    "eos_ids",
    "taps",
    "exits",
    "dtype",
    "name",
)
# Where a model stays as it is, nothing of its function may differ.
_MAY_DIFFER = ("dtype", "name", "taps", "exits")


_FIELDS = dataclasses.fields(Config)
# What two models that speak of the same next tokens have in common.
_SHARED = ("vocab_size", "mask_id", "attention", "predicts", "shift")


class Source(NamedTuple):
    """Weights as they were found: parameters, their hash, and who made them."""

    params: Params
    origin: str  # as the config names it
    sha256: str

    def facts(self) -> dict[str, str]:
        return {"from": self.origin, "sha256": self.sha256}


def read(config: TrainConfig, workdir: pathlib.Path | None) -> dict[str, Source]:
    """What `config` names: "start_from", and the frozen models by role.

    Raises ValueError for weights that are missing or damaged, that are the run's own
    folder, or that are another model's, naming the fields and both values.
    """
    named = {f"frozen.{role}": origin for role, origin in config.frozen.items()}
    if config.start_from is not None:
        named["start_from"] = config.start_from
    needs = objectives.find(config.objective).needs
    found = {}
    for field, origin in named.items():
        is_own = workdir is not None and pathlib.Path(origin).resolve() == (
            pathlib.Path(workdir).resolve()
        )
        if is_own and pathlib.Path(origin).exists():
            raise ValueError(
                f"{field}={origin} is the folder of this run, which would replace it: "
                "choose another --out"
            )
        try:
            params, record = embedded.read_from(origin)
        except ValueError as error:
            raise ValueError(f"{field}={origin}: {error}") from None
        if embedded.holds(record)["kind"] != "transformer":
            raise ValueError(
                f"{field}={origin} holds {embedded.holds(record)['kind']}, no model"
            )
        free = _MAY_CHANGE if field == "start_from" else _MAY_DIFFER
        if field.removeprefix("frozen.") in needs.of_any_size:
            free = tuple(each.name for each in _FIELDS if each.name not in _SHARED)
        _check(field, origin, embedded.transformer_config(record), config.model, free)
        found[field] = Source(params, origin, record["sha256"])
    return found


def model_of(config: TrainConfig, role: str) -> Config:
    """What a frozen model is, as its record says; it computes in the run's dtype."""
    made = embedded.transformer_config(embedded.record_of(config.frozen[role]))
    return dataclasses.replace(made, dtype=config.model.dtype)


def _check(
    field: str, origin: str, theirs: Config, mine: Config, free: tuple[str, ...]
) -> None:
    differ = [
        f"model.{name}={getattr(mine, name)!r} here, {getattr(theirs, name)!r} there"
        for name in (each.name for each in _FIELDS)
        if name not in free and getattr(mine, name) != getattr(theirs, name)
    ]
    if differ:
        raise ValueError(f"{field}={origin} holds another model: {'; '.join(differ)}")


def facts(found: dict[str, Source]) -> dict[str, Any]:
    """What a record says of the weights that a run used."""
    start = found.get("start_from")
    return {
        "start_from": None if start is None else start.facts(),
        "frozen": {
            name.removeprefix("frozen."): source.facts()
            for name, source in found.items()
            if name != "start_from"
        },
    }
