"""SPACE: the embedded target trained on to guess at masks (arXiv:2402.11809).

    pdecode train --config configs/byte_space.py

Four masks behind eight places of a row. All of the model learns, so it is another
target afterwards: validation_bits_per_byte say what that cost. Data as in
byte_target.py. Its acceptance by depth is told, in Python, by

    pdecode.evals.acceptance.measure(method="space", model="results/byte_space")

Hardware: made for one accelerator; on a CPU add --set batch_size=8 and fewer steps.
"""

from pdecode.models.bytes import EOS_ID, MASK_ID, VOCAB_SIZE
from pdecode.models.config import Config
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="byte_space",
        objective="space",
        start_from="target",
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
        options={"num_masks": 4},
        steps=2000,
        row_len=512,
        batch_size=64,
        short_len=256,
        optimizer="adamw",
        learning_rate=3e-4,
        schedule="stable",
        warmup_steps=50,
        decay_steps=600,
        checkpoint_every=1000,
        eval_every=1000,
        eval_rows=16,
    )
