"""Trains drafters towards a target, each with its own divergence and texts.

    python experiments/distill/train.py results/distill tvd-drafter forward_kl-given

A run is named DIVERGENCE-TEXTS, or "data" for more of the drafter's own objective; more
settings as in `pdecode train --set`. Figures are on the first part of the validation
text, because the whole of it takes longer than the training.
"""

import argparse
import dataclasses
import pathlib

from pdecode.data import texts
from pdecode.train import settings, train

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "byte_distilled.py"
NUM_VALIDATION = 50_000


def config_of(name, sets):
    """The shipped config with the divergence and texts that `name` says."""
    config = settings.load(CONFIG)
    if name == "data":
        config = dataclasses.replace(
            config, objective="autoregressive", frozen={}, options=None
        )
    else:
        divergence, writer = name.split("-")
        config = settings.override(
            config, [f"divergence={divergence}", f"texts={writer}"]
        )
    return settings.override(config, sets)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    training, validation = texts.read(None, None)
    streams = training, validation[:NUM_VALIDATION]
    for name in args.names:
        sets = args.set
        if name == "data":
            sets = [each for each in sets if not each.startswith("frozen")]
        train(config_of(name, sets), args.out / name, streams=streams)


if __name__ == "__main__":
    main()
