r"""A judge of the tasks' answers on a model of them (arXiv:2501.19309).

    pdecode train --config configs/task_causal.py
    python -m pdecode.train.judgements results/task_judgements
    pdecode train --config configs/task_judge.py
    pdecode generate --model results/task_causal --method judge_decoding \
        --drafter results/task_drafter,results/task_judge --prompt "Hdbca....="

Hardware: 97 numbers are trained; a CPU is enough.
"""

import dataclasses
import pathlib

from pdecode.data.parallelbench.rows import ROW_LEN
from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "task_causal.py")
    return dataclasses.replace(
        base,
        name="task_judge",
        objective="judge",
        frozen={"target": "results/task_causal"},
        data="rows",
        data_dir="results/task_judgements",
        steps=1000,
        row_len=2 * ROW_LEN,
        batch_size=64,
        optimizer="adamw",
        learning_rate=2e-2,
        weight_decay=0.0,
        schedule="cosine",
        decay_steps=0,
        warmup_steps=20,
        matmul_dtype="float32",
        checkpoint_every=500,
        eval_every=500,
    )
