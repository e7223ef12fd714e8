"""The embedded autoregressive target: 2.7 million parameters on Python source code.

    pdecode train --config configs/byte_target.py

Data: the running interpreter's standard library, 9.5 million bytes. Expected: see
pdecode/models/weights/target.json. Hardware: one H200, 31 seconds. On a CPU add --set
model.dtype=float32, and with bfloat16 matrix units --set forward=plain --set
matmul_dtype=bfloat16: hours.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_target",
        objective="autoregressive",
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
        steps=950,
        row_len=512,
        batch_size=128,
        short_len=256,
        long_steps=190,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=285,
        checkpoint_every=950,
        eval_every=237,
        eval_rows=64,
    )
