"""The embedded target, trained to reach the ends of its own Jacobi trajectories (CLLM).

    python -m pdecode.train.trajectories target results/target_trajectories
    pdecode train --config configs/byte_consistency.py
    pdecode generate --model results/byte_consistency --method jacobi \
        --set window=16 --set block_length=16 --set start=text --prompt "def f(n):"

What it reaches: experiments/diffusion/README.md.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "byte_target.py")
    return dataclasses.replace(
        base,
        name="byte_consistency",
        objective="consistency",
        start_from="target",
        options={"prompt_length": 32, "block_length": 16, "ar_weight": 1.0},
        data="rows",
        data_dir="results/target_trajectories",
        steps=200,
        row_len=4 * 128,
        short_len=None,
        long_steps=0,
        batch_size=8,
        optimizer="adamw",
        learning_rate=5e-4,
        schedule="cosine",
        decay_steps=0,
        warmup_steps=20,
        weight_decay=0.0,
        forward="transformer",
        matmul_dtype="float32",
        checkpoint_every=100,
        eval_every=50,
        eval_rows=32,
    )
