"""Digits that a run of configs/digits_staged.py draws, on a sheet, and their worth.

    python -m pdecode.evals.staged_digits results/digits_staged digits.png

Figures are those of `pdecode bench --suite visual`; values become the nearest levels.
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pdecode import rng
from pdecode.evals import images
from pdecode.evals.bench import visual
from pdecode.families import staged as family
from pdecode.models import digits, embedded, frames
from pdecode.models.staged import Staged


def draw(
    folder: str, num_samples: int, num_steps: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, family.Drawn]:
    """(images uint8 [N, 8, 8], the classes asked for in turn, what was drawn).

    ValueError for a folder that holds no such run.
    """
    net, params, _ = embedded.load(folder)
    if not isinstance(net, Staged) or net.grid.side != digits.SIDE:
        raise ValueError(f"{folder} holds no run of objective='staged_flow' on digits")
    classes = np.arange(num_samples) % digits.NUM_CLASSES
    keys = rng.row_keys(rng.key(seed), jnp.arange(num_samples))
    run = jax.jit(functools.partial(family.drawn, net, num_steps=num_steps))
    made = run(params, jnp.asarray(digits.FIRST_CLASS + classes, jnp.int32), keys)
    return frames.levels(np.asarray(made.values)), classes, made


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("folder", help="of a finished run")
    made.add_argument("out", help="a PNG")
    made.add_argument("--images", type=int, default=1000)
    made.add_argument("--steps", type=int, default=8, help="of Heun's method, a stage")
    args = made.parse_args(arguments)
    pictures, classes, drawn = draw(args.folder, args.images, args.steps)
    images.sheet(args.out, pictures[:50])
    by = visual.judge()
    print(images.worth(by, pictures, classes))
    print(f"{drawn.num_calls} calls, {drawn.num_head_calls} of the head")


if __name__ == "__main__":
    main(sys.argv[1:])
