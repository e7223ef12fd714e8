"""The embedded drafter: the target's task at about a twelfth of its cost.

    pdecode train --config configs/byte_drafter.py

Data and hardware as in byte_target.py. Expected: see
pdecode/models/weights/drafter.json.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_drafter",
        objective="autoregressive",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            mlp_width=160,
            tied=True,
            max_positions=512,
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="drafter",
        ),
        steps=2900,
        row_len=512,
        batch_size=8,
        short_len=256,
        long_steps=500,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="stable",
        warmup_steps=50,
        decay_steps=500,
        forward="plain",
        matmul_dtype="bfloat16",
        checkpoint_every=100,
        eval_every=250,
        eval_rows=16,
    )
