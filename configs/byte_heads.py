"""The embedded blockwise heads: six tokens more from each call of the frozen target.

    pdecode train --config configs/byte_heads.py

The target is the embedded one; --set frozen.target=FOLDER takes another run's. Data as
in byte_target.py. Expected: bits a token by head, see
pdecode/models/weights/heads.json. Hardware: one H200, 24 seconds beside other runs; on
a CPU as byte_target.py says.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_heads",
        objective="blockwise_heads",
        frozen={"target": "target"},
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=1,
            mlp_width=640,
            tied=True,
            max_positions=512,
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            dtype="bfloat16",
            name="target",
        ),
        options={"num_heads": 6, "heads_width": 128},
        steps=2000,
        row_len=512,
        batch_size=128,
        short_len=256,
        optimizer="adamw",
        learning_rate=3e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=600,
        checkpoint_every=2000,
        eval_every=1000,
        eval_rows=64,
    )
