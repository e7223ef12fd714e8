"""The embedded model of the tasks, made certain of its own answers (dParallel).

    python -m pdecode.evals.parallelbench.answers task_masked results/task_answers \
        --instances 800
    pdecode train --config configs/task_certainty.py

Blocks of 16 are a grid's canvas; answers of other tasks fill less than one. What it
reaches: experiments/diffusion/README.md.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_masked.py")
    return dataclasses.replace(
        base,
        name="task_certainty",
        objective="certainty",
        start_from="task_masked",
        options={"block_length": 16, "prompt_end": base.options.prompt_end},
        data="rows",
        data_dir="results/task_answers",
        steps=300,
        batch_size=32,
        optimizer="adamw",
        learning_rate=3e-4,
        schedule="cosine",
        decay_steps=0,
        warmup_steps=20,
        checkpoint_every=300,
        eval_every=100,
    )
