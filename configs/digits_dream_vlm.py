"""DREAM's draft layers, which look at a target's features across (arXiv:2505.19201).

    pdecode train --config configs/digits_dream_vlm.py
    pdecode generate --model results/digits_captions \
        --drafter results/digits_dream_vlm --method dream_vlm --prompt-ids ...

Data and target: configs/digits_captions.py; of the target's three layers only the first
may be the middle one, so that nothing is chosen. Hardware: a CPU core, minutes.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    return dataclasses.replace(
        settings.load(HERE / "digits_captions.py"),
        name="digits_dream_vlm",
        objective="dream_vlm",
        frozen={"target": "results/digits_captions"},
        options={"num_given": 65},
        steps=600,
        optimizer="adamw",
        learning_rate=3e-3,
    )
