"""The embedded drafter as nested sub-models: a token may leave after its first layer.

    pdecode train --config configs/byte_sorted.py

Its folder is a drafter of s2d. Data as in byte_target.py. Expected: see
experiments/distill/README.md. Hardware: two CPU cores, minutes.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_sorted",
        objective="sorted_exits",
        start_from="drafter",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=96,
            num_layers=2,
            num_heads=3,
            num_kv_heads=1,
            mlp_width=256,
            tied=True,
            max_positions=512,
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            exits=(1, 2),
            name="drafter",
        ),
        steps=600,
        row_len=128,
        batch_size=8,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=20,
        checkpoint_every=300,
        eval_every=300,
        eval_rows=64,
    )
