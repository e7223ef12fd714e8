"""The embedded drafter, taught to reach the ends of its own Jacobi trajectories (CLLM).

    python -m pdecode.train.trajectories drafter results/drafter_trajectories \
        --prompts 256 --max-new-tokens 64 --own-labels-up-to 0
    pdecode train --config configs/byte_consistency.py
    pdecode generate --model results/byte_consistency --method jacobi \
        --set window=16 --set block_length=16 --set start=text --prompt "def f(n):"

A small model, for a run of minutes on a shared CPU; --set start_from=target and its
sizes do the same for the target. Expected: experiments/diffusion/README.md.
"""

import dataclasses
import pathlib

from pdecode.train import TrainConfig, settings

HERE = pathlib.Path(__file__).parent


def get_config() -> TrainConfig:
    base = settings.load(HERE / "byte_drafter.py")
    return dataclasses.replace(
        base,
        name="byte_consistency",
        objective="consistency",
        start_from="drafter",
        model=dataclasses.replace(base.model, dtype="float32"),
        options={"prompt_length": 32, "block_length": 16, "ar_weight": 10.0},
        data="rows",
        data_dir="results/drafter_trajectories",
        steps=90,
        row_len=4 * 96,
        short_len=None,
        long_steps=0,
        batch_size=16,
        optimizer="adamw",
        learning_rate=5e-4,
        schedule="cosine",
        decay_steps=0,
        warmup_steps=10,
        weight_decay=0.0,
        forward="transformer",
        matmul_dtype="float32",
        checkpoint_every=90,
        eval_every=90,
        eval_rows=32,
    )
