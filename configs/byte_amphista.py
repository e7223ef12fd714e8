"""Amphista's heads on the embedded target (arXiv:2406.13170).

    pdecode train --config configs/byte_amphista.py

Four heads that see each other, behind two layers, 2.4 million parameters. The target is
the embedded one; --set frozen.target=FOLDER takes another run's. Data as in
byte_target.py.
Expected: acceptance by depth as in experiments/drafters/README.md, by

    pdecode eval-drafter results/byte_amphista

Hardware: made for one accelerator; on a CPU add --set batch_size=8 and fewer steps.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_amphista",
        objective="amphista",
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
            name="target",
        ),
        options={"num_heads": 4},
        steps=2000,
        row_len=512,
        batch_size=64,
        short_len=256,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="stable",
        warmup_steps=50,
        decay_steps=600,
        checkpoint_every=1000,
        eval_every=1000,
        eval_rows=16,
    )
