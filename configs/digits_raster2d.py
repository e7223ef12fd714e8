"""Digits pixel by pixel, row by row, given the class, with 2D rotary positions.

    pdecode train --config configs/digits_raster2d.py

Data: the 1,797 handwritten digits that scikit-learn ships (the extra `images`), one
token a pixel behind the class. The run of configs/digits_raster.py but for the
positions: rotary ones by row and by column in place of a learned table, which reached
1.73 bits a pixel on the held-out images. Expected: see
pdecode/models/weights/digits_raster2d.json (1.68). Hardware: a CPU core, minutes.
"""

from pdecode.models.config import Config, Rope
from pdecode.models.digits import MASK_ID, RECORD, SIDE, VOCAB_SIZE
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="digits_raster2d",
        objective="autoregressive",
        options={"drop_first": 0.1},
        data="digits",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=64,
            num_layers=3,
            num_heads=4,
            mlp_width=160,
            rope=Rope(theta=100.0, columns=SIDE, before=1),
            tied=True,
            max_positions=RECORD,
            mask_id=MASK_ID,
            name="digits_raster2d",
        ),
        steps=450,
        row_len=RECORD,
        batch_size=32,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="stable",
        decay_steps=200,
        ema_decay=0.99,
        checkpoint_every=100,
        eval_every=100,
        eval_rows=64,
    )
