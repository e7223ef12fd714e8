"""Trains the drafters of configs/byte_*.py for a few steps on a CPU, one by one.

    python experiments/drafters/train.py medusa hydra --steps 60

writes results/drafters/NAME, which measure.py reads. All see the same batches. Figures
of the run are of a short piece of the validation text: what counts is what is accepted.
"""

import argparse
import dataclasses
import pathlib

from pdecode.data import texts
from pdecode.train import settings, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--row-len", type=int, default=128)
    args = parser.parse_args()
    training, validation = texts.read(None, None)
    for name in args.names:
        config = dataclasses.replace(
            settings.load(CONFIGS / f"byte_{name}.py"), steps=args.steps,
            batch_size=args.batch_size, row_len=args.row_len, short_len=None,
            schedule="cosine", decay_steps=0, warmup_steps=5, learning_rate=3e-3,
            checkpoint_every=args.steps, eval_every=args.steps, eval_rows=2,
        )  # fmt: skip
        out = pathlib.Path("results/drafters") / name
        train(config, out, streams=(training, validation[:2048]))


if __name__ == "__main__":
    main()
