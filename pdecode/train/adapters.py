"""Any objective over adapters: the weights of `start_from` stay, A and B are trained.

LoRA: Hu et al., 2021, arXiv:2106.09685; `pdecode.models.adapters` says what they are.
The state of a run, its checkpoints and its weights hold adapters only; the base is a
frozen model of the step. What loads the run's folder finds the base by its name and
hash and adds them to it. A folder that needs no other one is written by

    python -m pdecode.train.adapters results/NAME results/MERGED
"""

import dataclasses
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from pdecode.models import adapters, embedded
from pdecode.train.objective import Objective

BASE = "base"  # the role of what the adapters stand beside, in `frozen`


@dataclasses.dataclass(frozen=True)
class Adapters:
    """How large the adapters are, and where. The defaults' places are the paper's."""

    rank: int
    alpha: float | None = None  # what A B is multiplied by, times rank; None: rank
    names: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        if isinstance(self.rank, bool) or not isinstance(self.rank, int):
            raise ValueError(f"adapters.rank={self.rank!r} must be an int")
        if self.rank < 1:
            raise ValueError(f"adapters.rank={self.rank} must be at least 1")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"adapters.alpha={self.alpha} must be above 0 and finite")
        if not self.names or not set(self.names) <= set(adapters.NAMES):
            raise ValueError(
                f"adapters.names={self.names} must be some of "
                f"{', '.join(adapters.NAMES)}"
            )

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


def check(config: Any) -> None:
    """ValueError, naming the field, for a run that cannot train its adapters."""
    if config.adapters is None:
        return
    if config.start_from is None:
        raise ValueError(
            f"adapters.rank={config.adapters.rank} needs start_from: the weights that "
            "they stand beside"
        )
    if config.forward != "transformer":
        raise ValueError(
            f"forward={config.forward!r} reads no adapters; use forward='transformer'"
        )


def over(objective: Objective, own: Adapters) -> Objective:
    """`objective` with adapters as its parameters and the base in `frozen`.

    Its `start` raises ValueError where the objective's own parameters are not those
    of `start_from`, and as `models.adapters.init` does.
    """

    def whole(params, frozen):
        rest = {
            role: tree for role, tree in frozen.items() if role not in (BASE, "ema")
        }
        return adapters.joined(frozen[BASE], params, own.scale), rest

    def start(config, key, given):
        begun = jax.eval_shape(lambda: objective.start(config, key, given))
        if jax.tree.structure(begun) != jax.tree.structure(given):
            raise ValueError(
                f"adapters.rank={own.rank}: objective={config.objective} trains "
                f"parameters that start_from={config.start_from} does not hold"
            )
        return adapters.init(given, own.rank, own.names, key)

    def loss(config):
        inner = objective.loss(config)

        def apply(params, frozen, batch, key, step):
            return inner(*whole(params, frozen), batch, key, step)

        return apply

    def figures(config, params, frozen, text, **sizes):
        return objective.figures(config, *whole(params, frozen), text, **sizes)

    def holds(config):
        return objective.holds(config) | {"adapters": {"scale": own.scale}}

    return objective._replace(start=start, loss=loss, figures=figures, holds=holds)


def merge(folder: str, out: str) -> None:
    """Writes the run in `folder`, its adapters added to their base, to `out`.

    ValueError for a folder without adapters, and an `out` that holds a run already.
    """
    from pdecode.train import export

    params, record = embedded.read_from(folder)
    if "adapters" not in embedded.holds(record):
        raise ValueError(f"{folder} holds no adapters: there is nothing to merge")
    if embedded.is_run(out):
        raise ValueError(f"{out} holds a run already: choose another folder")
    kept = {name: each for name, each in record["holds"].items() if name != "adapters"}
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    record = {**record, "holds": kept, "num_params": count, "merged_from": folder}
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    export.write(out, "weights", params, record, dtype=np.float32)


if __name__ == "__main__":
    merge(*sys.argv[1:])
