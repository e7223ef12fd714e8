"""The embedded drafter: the target's task at about a twelfth of its cost.

    pdecode train --config configs/byte_drafter.py

Data as in byte_target.py. Expected: see pdecode/models/weights/drafter.json. Hardware:
one H200, 111 seconds beside another run; on a CPU as byte_target.py says.
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
            width=96,
            num_layers=2,
            num_heads=3,
            num_kv_heads=1,
            mlp_width=256,
            tied=True,
            max_positions=512,
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            dtype="bfloat16",
            name="drafter",
        ),
        steps=8000,
        row_len=512,
        batch_size=128,
        short_len=256,
        long_steps=1600,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="stable",
        warmup_steps=50,
        decay_steps=2400,
        checkpoint_every=8000,
        eval_every=4000,
        eval_rows=64,
    )
