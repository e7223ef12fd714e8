"""The embedded autoregressive target: 1.3 million parameters on Python source code.

    pdecode train --config configs/byte_target.py

Data: the running interpreter's standard library, 9.5 million bytes. Expected: see
pdecode/models/weights/target.json. Hardware: CPUs with bfloat16 matrix units (about 5
thousand tokens a second and core); elsewhere add --set matmul_dtype=float32, on a GPU
--set forward=transformer --set model.dtype=bfloat16.
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
            width=192,
            num_layers=4,
            num_heads=3,
            num_kv_heads=1,
            mlp_width=384,
            tied=True,
            max_positions=512,
            mask_id=MASK_ID,
            eos_ids=(EOS_ID,),
            name="target",
        ),
        steps=1000,
        row_len=512,
        batch_size=8,
        short_len=256,
        long_steps=200,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=200,
        forward="plain",
        matmul_dtype="bfloat16",
        checkpoint_every=100,
        eval_every=250,
        eval_rows=16,
    )
