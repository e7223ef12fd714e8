"""A target that answers questions about a handwritten digit, which it reads as tokens.

    python -m pdecode.data.captions results/captions
    pdecode train --config configs/digits_captions.py

What configs/digits_spec_vlm.py and its like draft for. Hardware: a CPU core, minutes.
"""

from pdecode.data import captions
from pdecode.models.config import Config
from pdecode.models.digits import MASK_ID
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="digits_captions",
        data="rows",
        data_dir="results/captions",
        model=Config(
            vocab_size=captions.VOCAB_SIZE,
            width=64,
            num_layers=3,
            num_heads=4,
            mlp_width=160,
            tied=True,
            max_positions=128,
            mask_id=MASK_ID,
            name="digits_captions",
        ),
        steps=600,
        row_len=captions.ROW_LEN,
        batch_size=32,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="stable",
        decay_steps=200,
        checkpoint_every=200,
        eval_every=200,
        eval_rows=64,
    )
