"""The filter of Learn2PD for the embedded model of the tasks.

    python -m pdecode.evals.parallelbench.answers task_masked results/task_answers \
        --instances 800
    pdecode train --config configs/task_filter.py
    pdecode generate --model task_masked --drafter results/task_filter \
        --method learn2pd --prompt "Sdbca....=" --max-new-tokens 8

What it reaches: experiments/diffusion/README.md.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_masked.py")
    return dataclasses.replace(
        base,
        name="task_filter",
        objective="block_filter",
        frozen={"target": "task_masked"},
        options={"block_length": 8, "prompt_end": base.options.prompt_end},
        data="rows",
        data_dir="results/task_answers",
        steps=300,
        batch_size=64,
        optimizer="adamw",
        learning_rate=2e-2,
        weight_decay=0.0,
        schedule="cosine",
        decay_steps=0,
        warmup_steps=20,
        matmul_dtype="float32",
        checkpoint_every=300,
        eval_every=100,
    )
