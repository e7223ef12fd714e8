r"""The embedded masked model of the tasks, rewarded for right answers in few calls.

    pdecode train --config configs/task_grpo.py
    pdecode generate --model results/task_grpo --method ascending_steps \
        --prompt "Sdbca....=" --max-new-tokens 8

CJ-GRPO (arXiv:2509.23924): answers in ascending steps, five calls a row. Data as in
task_masked.py. Hardware: one accelerator, minutes.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_masked.py")
    return dataclasses.replace(
        base,
        name="task_grpo",
        objective="grpo",
        start_from="task_masked",
        frozen={"reference": "task_masked"},
        options={"group": 8, "prompt_end": base.options.prompt_end},
        steps=600,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule="cosine",
        decay_steps=0,
        warmup_steps=20,
        forward="transformer",
        matmul_dtype="float32",
        checkpoint_every=300,
        eval_every=100,
        eval_rows=512,
    )
