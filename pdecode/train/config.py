"""What a training run is, as one frozen record that refuses what cannot be right."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pdecode.data import texts
from pdecode.models import bytes as text
from pdecode.models.config import Config
from pdecode.train import adapters
from pdecode.train.adapters import Adapters

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "stable")
FORWARDS = ("transformer", "plain")
DTYPES = ("float32", "bfloat16")
UNITS = ("byte", "token")
DATA = (None, *texts.KINDS)
# What a parameter is to an optimizer; `pdecode.train.optimizers` tells them apart.
ROLES = ("matrix", "embedding", "head", "norm", "bias", "expert", "adapter")
_WEIGHTS = ("matrix", "embedding", "head", "expert", "adapter")
_NO_LIMIT = (-math.inf, math.inf)
# Field: lowest and highest value, both allowed; numbers are finite besides.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    # JAX's keys are made of 32 bits: a larger seed would be another one in disguise.
    "seed": (0, 2**32 - 1),
    "row_len": (2, math.inf),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "short_len": (2, math.inf),
    "long_steps": (0, math.inf),
    "final_fraction": (0, 1),
    "warmup_steps": (0, math.inf),
    "decay_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "ema_decay": (0, 1 - 1e-9),
    "b1": (0, 1 - 1e-9),
    "b2": (0, 1 - 1e-9),
    "checkpoint_every": (1, math.inf),
    "eval_every": (1, math.inf),
    "eval_rows": (1, math.inf),
}
_MODEL_RANGES: dict[str, tuple[float, float]] = {
    "window": (1, math.inf),
    "max_positions": (1, math.inf),
    "block_len": (1, math.inf),
    "norm_eps": (0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run: everything its result depends on, besides the machine.

    Raises ValueError, naming the field, the value and the way out.
    """

    name: str
    model: Config  # of the model trained, or of the frozen target
    steps: int
    objective: str = "autoregressive"  # a module of pdecode.train.objectives
    # The objective's own settings, as a mapping; here they become its `Options`.
    options: Any = None
    seed: int = 0
    # Data. The last `long_steps` batches use whole rows; before them rows are cut to
    # `short_len`, which is cheaper and sees as many tokens.
    # None: text. "tasks": rows of pdecode.data.parallelbench, an instance each.
    # "digits": rows of pdecode.data.digits, an image each behind its class.
    # "frames": rows of pdecode.data.frames, a clip each behind its class and actions.
    # "rows": rows of `row_len` tokens that a preparation left in data_dir.
    data: str | None = None
    data_dir: str | None = None
    unit: str | None = (
        None  # "byte" or "token"; None: bytes if the vocabulary is theirs
    )
    row_len: int = 512
    batch_size: int = 8  # rows of row_len
    accumulate: int = 1  # parts of a batch, one after the other, for less memory
    short_len: int | None = None
    long_steps: int = 0
    skip_steps: tuple[int, ...] = ()  # steps, from zero, whose batch changes nothing
    # Optimizer.
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    final_fraction: float = 0.0  # of the learning rate, at the last step
    warmup_steps: int = 50
    schedule: str = "cosine"  # "stable": constant, then linear in `decay_steps`
    decay_steps: int = 0
    weight_decay: float = 0.1
    decayed: tuple[str, ...] = _WEIGHTS  # roles that the decay is for
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0
    ema_decay: float = 0.0  # above 0 the result is this moving average of the steps
    # The pass: "transformer" serves every model and device; "plain" is faster on CPUs.
    forward: str = "transformer"
    remat: bool = False  # of "transformer": recompute, for less memory and more time
    # What the layers' matmuls read while training; parameters, gradients and the
    # optimizer stay in float32. "float32" leaves it to `model.dtype`.
    matmul_dtype: str = "float32"
    # Where parameters begin, and models that stay as they are, by role: an embedded
    # model's name or a folder that a run wrote.
    start_from: str | None = None
    adapters: Adapters | None = None  # trained beside `start_from`, which then stays
    frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Bookkeeping.
    checkpoint_every: int = 200
    eval_every: int = 200
    eval_rows: int = 32

    def __post_init__(self):
        put = object.__setattr__
        put(self, "skip_steps", tuple(sorted(set(self.skip_steps))))
        put(self, "decayed", tuple(self.decayed))
        self._check_choices()
        self._check_ranges()
        from pdecode.train import objectives

        objective = objectives.find(self.objective)
        self._check_rows(objective.needs.streams)
        self._check_schedule()
        self._check_pass()
        frozen = self.frozen
        if isinstance(frozen, str) and len(objective.needs.frozen) == 1:
            frozen = {objective.needs.frozen[0]: frozen}
        if not isinstance(frozen, Mapping) or not all(
            isinstance(origin, str) for origin in frozen.values()
        ):
            raise ValueError(
                f"frozen={frozen!r} must name a folder or model for each role, as "
                "frozen.target=NAME"
            )
        put(self, "frozen", dict(frozen))
        put(self, "options", objectives.options(self.objective, self.options))
        objectives.check(self)
        adapters.check(self)

    @property
    def scored_unit(self) -> str:
        """What figures are divided by: "byte" or "token"."""
        if self.unit is not None:
            return self.unit
        return "byte" if self.model.vocab_size == text.VOCAB_SIZE else "token"

    @property
    def own_rows(self) -> int | None:
        """Tokens of each row of the text, where it has rows that may not be cut."""
        if self.data is None:
            return None
        return texts.KINDS[self.data].row_len or self.row_len

    @property
    def given_ids(self) -> tuple[int, ...]:
        """Tokens that the text gives and nobody predicts: BOS, or an image's class."""
        if self.data is not None and texts.KINDS[self.data].given_ids:
            return texts.KINDS[self.data].given_ids
        return (text.BOS_ID,) if self.scored_unit == "byte" else ()

    def _check_choices(self):
        for field, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("forward", FORWARDS),
            ("matmul_dtype", DTYPES),
            ("data", DATA),
            ("unit", (None, *UNITS)),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"unknown {field} {value!r}; known: {known}")
        if self.model.dtype not in DTYPES:
            raise ValueError(
                f"unknown model.dtype {self.model.dtype!r}; known: {DTYPES}"
            )
        check_ranges(self.model, _MODEL_RANGES, "model.")
        for token in self.model.eos_ids:
            if not 0 <= token < self.model.vocab_size:
                raise ValueError(
                    f"model.eos_ids={token} is no id of model.vocab_size="
                    f"{self.model.vocab_size}"
                )
        experts = self.model.experts
        if experts is not None:
            top = {"num_experts": (1, math.inf), "width": (1, math.inf)}
            top["top_k"] = (1, experts.num_experts)
            check_ranges(experts, top, "model.experts.")
        for role in self.decayed:
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r} in decayed; known: {ROLES}")

    def _check_ranges(self):
        check_ranges(self, RANGES)
        for field in ("learning_rate", "clip_norm"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ValueError(f"{field}={value} must be above 0 and finite")
        for step in self.skip_steps:
            if not 0 <= step < self.steps:
                raise ValueError(
                    f"skip_steps={step} must be in [0, steps={self.steps})"
                )
        if self.unit == "byte" and self.model.vocab_size < text.VOCAB_SIZE:
            raise ValueError(
                f"unit='byte' needs model.vocab_size={self.model.vocab_size} to be at "
                f"least {text.VOCAB_SIZE}: bytes and their special ids"
            )

    def _check_rows(self, streams: int):
        if self.short_len is not None and self.row_len % self.short_len:
            raise ValueError(
                f"short_len={self.short_len} must divide row_len={self.row_len}"
            )
        if self.short_len is None and self.long_steps:
            raise ValueError(
                f"long_steps={self.long_steps} needs a short_len: without one every "
                "step has whole rows"
            )
        limit = self.model.max_positions
        if limit is not None and self.row_len > limit * streams:
            each = "" if streams == 1 else f", in each of its {streams} parts"
            raise ValueError(
                f"row_len={self.row_len} exceeds model.max_positions={limit}{each}"
            )
        if self.data is not None:
            self._check_own_rows(texts.KINDS[self.data])
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} must divide batch_size={self.batch_size}"
            )

    def _check_own_rows(self, kind: texts.Kind):
        for field, wanted in (
            ("row_len", self.own_rows),
            ("short_len", None),
            ("data_dir", None if kind.is_made else self.data_dir),
        ):
            if getattr(self, field) != wanted:
                raise ValueError(
                    f"{field}={getattr(self, field)!r}: data={self.data!r} has rows of "
                    f"its own and needs {field}={wanted}"
                )
        if kind.is_bytes and self.scored_unit != "byte":
            raise ValueError(
                f"data={self.data!r} is bytes: it needs unit='byte' and a vocabulary "
                f"of at least {text.VOCAB_SIZE}"
            )

    def _check_schedule(self):
        if self.schedule == "cosine" and self.decay_steps:
            raise ValueError(
                f"decay_steps={self.decay_steps} is of schedule='stable'; 'cosine' "
                "falls from the end of the warm-up on: set decay_steps=0"
            )
        for field in ("warmup_steps", "decay_steps", "long_steps"):
            value = getattr(self, field)
            if value > self.steps:
                raise ValueError(f"{field}={value} must be in [0, steps={self.steps}]")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} "
                f"overlap in steps={self.steps}: together they may not exceed it"
            )

    def _check_pass(self):
        if self.forward == "plain":
            from pdecode.train import plain

            plain.check(self.model)
            if self.remat:
                raise ValueError(
                    "remat=True is of forward='transformer'; the plain pass keeps all"
                )
        if self.remat and self.model.taps:
            raise ValueError(
                f"remat=True with model.taps={self.model.taps}: its scan keeps none"
            )


def check_ranges(
    record: Any, ranges: Mapping[str, tuple[float, float]], where: str = ""
) -> None:
    """ValueError, naming the field, where a number of `record` leaves its range."""
    for field, (low, high) in ranges.items():
        value = getattr(record, field)
        if value is None:
            continue
        if not low <= value <= high or not math.isfinite(value):
            top = "" if high == math.inf else f" and at most {high}"
            raise ValueError(f"{where}{field}={value} must be at least {low}{top}")
