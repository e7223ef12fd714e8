"""What a training run is, as one frozen record, and dotted overrides of it."""

import ast
import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from pdecode.models.config import Config

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "stable")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run: everything its result depends on, besides the machine."""

    name: str
    model: Config  # of the model trained, or of the heads' frozen target
    steps: int
    objective: str = "autoregressive"  # a function of pdecode.train.losses
    seed: int = 0
    # Data. The last `long_steps` batches use whole rows; before them rows are cut to
    # `short_len`, which is cheaper and sees as many tokens.
    data_dir: str | None = None
    row_len: int = 512
    batch_size: int = 8  # rows of row_len
    short_len: int | None = None
    long_steps: int = 0
    # Optimizer.
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    final_fraction: float = 0.0  # of the learning rate, at the last step
    warmup_steps: int = 50
    schedule: str = "cosine"  # "stable": constant, then linear in `decay_steps`
    decay_steps: int = 0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0
    # The pass: "transformer" serves every model and device; "plain" is faster on CPUs.
    forward: str = "transformer"
    remat: bool = False  # of "transformer": recompute, for less memory and more time
    matmul_dtype: str = "float32"  # of "plain": what the layers' matmuls read
    # Of the masked diffusion objective.
    weighting: str = "llada"  # "llada": 1 / p; "mdlm": -alpha' / (1 - alpha)
    eos_fill: float = 0.5  # rows whose text after a document's end becomes EOS
    # Of the blockwise heads objective.
    num_heads: int = 6
    heads_width: int = 128
    # Where parameters start, or the frozen target lies: an embedded model's name or a
    # folder that a run wrote; None: random.
    init_from: str | None = None
    # Bookkeeping.
    checkpoint_every: int = 200
    eval_every: int = 200
    eval_rows: int = 32

    def __post_init__(self):
        for field, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("weighting", ("llada", "mdlm")),
            ("forward", ("transformer", "plain")),
            ("matmul_dtype", ("float32", "bfloat16")),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"unknown {field} {value!r}; known: {known}")
        for field in ("steps", "row_len", "batch_size", "checkpoint_every"):
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"{field}={value} must be at least 1")
        if self.short_len is not None and self.row_len % self.short_len:
            raise ValueError(
                f"short_len={self.short_len} must divide row_len={self.row_len}"
            )
        if not 0 <= self.decay_steps <= self.steps:
            raise ValueError(
                f"decay_steps={self.decay_steps} must be in [0, steps={self.steps}]"
            )
        limit = self.model.max_positions
        if limit is not None and self.row_len > limit:
            raise ValueError(f"row_len={self.row_len} exceeds max_positions={limit}")


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

    Values are Python literals; what is no literal is a string.

    Raises:
      ValueError: a setting without "=", an unknown field (lists the known ones), or a
        value whose type is not the field's present one.
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
        place[last] = value
    # All at once, because fields are checked against each other.
    return _replaced(config, changes)


def _replaced(config: Any, changes: dict) -> Any:
    known = [field.name for field in dataclasses.fields(config)]
    values = {}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"unknown field {name!r}; known: {', '.join(known)}")
        present = getattr(config, name)
        if isinstance(value, dict) and dataclasses.is_dataclass(present):
            value = _replaced(present, value)
        elif isinstance(present, float) and isinstance(value, int):
            value = float(value)
        elif present is not None and value is not None:
            if type(value) is not type(present):
                raise ValueError(
                    f"{name} is of type {type(present).__name__} (now {present!r}), "
                    f"but got {value!r}"
                )
        values[name] = value
    return dataclasses.replace(config, **values)
