"""Trains drafters towards a target, each with its own divergence and texts.

    python experiments/distill/train.py results/distill tvd-drafter forward_kl-given

A run is named DIVERGENCE-TEXTS, "data" for more of the drafter's own objective, or
"sorted" for nested sub-models; more settings as in `pdecode train --set`. Figures are
on the first part of the validation text, because the whole of it takes longer than the
training.
"""

import argparse
import dataclasses
import pathlib

from pdecode.data import texts
from pdecode.train import settings, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NUM_VALIDATION = 50_000


def config_of(name, sets):
    """The shipped config with the divergence and texts that `name` says."""
    if name == "sorted":
        return settings.override(settings.load(CONFIGS / "byte_sorted.py"), sets)
    config = settings.load(CONFIGS / "byte_distilled.py")
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
        train(config_of(name, args.set), args.out / name, streams=streams)


if __name__ == "__main__":
    main()
