"""The embedded drafter, taught the laws of the embedded target on texts of its own.

    pdecode train --config configs/byte_distilled.py

Another divergence or other texts: --set divergence=forward_kl, --set texts=given. Data
as in byte_target.py. Expected: see experiments/distill/README.md. Hardware: two CPU
cores, minutes.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_distilled",
        objective="distillation",
        start_from="drafter",
        frozen={"target": "target"},
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
            name="drafter",
        ),
        options={"divergence": "tvd", "texts": "drafter", "given_len": 32},
        steps=600,
        row_len=128,
        batch_size=8,
        optimizer="adamw",
        learning_rate=2e-4,
        schedule="cosine",
        warmup_steps=20,
        forward="plain",
        matmul_dtype="bfloat16",
        checkpoint_every=300,
        eval_every=300,
        eval_rows=64,
    )
