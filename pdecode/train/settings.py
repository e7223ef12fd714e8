"""Config files, and dotted overrides of what they say."""

import ast
import dataclasses
import importlib.util
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pdecode.models.config import Config
from pdecode.train.config import TrainConfig

# Fields of a model that its other fields give, where they are left out.
_DERIVED = ("num_kv_heads", "head_dim", "mlp_width", "sliding")


def load(path: str | os.PathLike) -> TrainConfig:
    """Runs a config file and returns what its get_config() returns.

    Raises ValueError, with the path, if there is no such file or function.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no get_config()")
    return module.get_config()


def override(config: Any, overrides: Iterable[str]) -> Any:
    """A copy of a (nested) dataclass with "dotted.field=value" settings applied.

    Values are Python literals; what is no literal is a string. An option of the
    objective needs no "options." before it. Fields of a model that follow from others
    (`head_dim` from `width`) follow the new ones.

    Raises:
      ValueError: a setting without "=", an unknown field (lists the known ones), an
        option of another objective, or a value that is not of the field's type.
    """
    changes: dict = {}
    for setting in overrides:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} is no setting; write field=value")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        *folders, last = path.strip().split(".")
        place = changes
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"{setting!r}: {folder} is set as a whole already")
        place[last] = value
    if isinstance(config, TrainConfig):
        changes = _with_options(config, changes)
    # All at once, because fields are checked against each other.
    return _replaced(config, changes, "")


def _with_options(config: TrainConfig, changes: dict) -> dict:
    """Moves what is an option of the objective from the top level to "options"."""
    from pdecode.train import objectives

    name = changes.get("objective", config.objective)
    known = {field.name for field in dataclasses.fields(config)}
    owners = objectives.owners()
    moved = {}
    for field in [field for field in changes if field not in known]:
        if field in owners:
            if name not in owners[field]:
                raise ValueError(
                    f"{field} is an option of {' and '.join(owners[field])}, not of "
                    f"objective={name}"
                )
            moved[field] = changes.pop(field)
    if not isinstance(changes.get("options", {}), dict):
        raise ValueError(
            f"options={changes['options']!r}: set one by one, as options.NAME=VALUE"
        )
    if moved:
        changes["options"] = {**changes.get("options", {}), **moved}
    if "options" in changes:
        kept = {}
        if name == config.objective:
            kept = dataclasses.asdict(config.options)
        kind = objectives.find(name).options
        given = _replaced(kind(**kept), changes["options"], "options.")
        changes["options"] = dataclasses.asdict(given)
    elif name != config.objective:
        changes["options"] = {}
    return changes


def declared(model: Config) -> dict[str, Any]:
    """The fields that make `model`, without those that follow from the others."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    for name in _DERIVED:
        rest = {field: value for field, value in fields.items() if field != name}
        try:
            follows = Config(**rest) == model
        except ValueError:
            continue
        if follows:
            fields = rest
    return fields


def _replaced(config: Any, changes: dict, where: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(type(config))
    values = {}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(
                f"unknown field {where}{name!r}; known: {', '.join(known)}"
                if not where
                else f"unknown field {where}{name}; known: {', '.join(known)}"
            )
        present, hint = getattr(config, name), hints[name]
        if isinstance(value, dict) and dataclasses.is_dataclass(present):
            value = _replaced(present, value, f"{where}{name}.")
        elif isinstance(value, dict) and dataclasses.is_dataclass(_kind(hint)):
            try:
                value = _kind(hint)(**value)
            except TypeError as error:
                raise ValueError(f"{where}{name}: {error}") from None
        elif isinstance(present, Mapping) and isinstance(value, dict):
            value = {**present, **value}
        elif not isinstance(present, Mapping) or not isinstance(value, str):
            value = _typed(f"{where}{name}", value, hint, present)
        values[name] = value
    if isinstance(config, Config):
        return Config(**{**declared(config), **values})
    return dataclasses.replace(config, **values)


def _kind(hint: Any) -> Any:
    """The type of a hint that is one type, or one type and None."""
    if isinstance(hint, types.UnionType):
        kinds = [each for each in typing.get_args(hint) if each is not type(None)]
        return kinds[0] if len(kinds) == 1 else None
    return hint


def _typed(name: str, value: Any, hint: Any, present: Any) -> Any:
    """`value` as its field's type says, an int as a float where that is wanted."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if origin is Any:
            return value
        if origin is float and type(value) is int:
            return float(value)
        if origin is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(kind)[0]
            if typing.get_origin(inner) is tuple:
                return tuple(_typed(name, each, inner, present) for each in value)
            if all(type(each) is inner for each in value):
                return tuple(value)
        elif type(value) is origin:
            return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"{name} is of type {names} (now {present!r}), but got {value!r}")
