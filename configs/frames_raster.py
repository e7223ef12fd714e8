"""Clips of moved digits pixel by pixel, given the class and the actions.

    pdecode train --config configs/frames_raster.py

Data: clips of the 1,797 handwritten digits that scikit-learn ships (the extra
`images`), each moved by seven actions; one token a pixel behind the head. Expected: see
`python -m pdecode.evals.bench.films`. Hardware: one H200, under a minute.
"""

from pdecode.models.config import Config
from pdecode.models.frames import MASK_ID, RECORD, VOCAB_SIZE
from pdecode.train import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="frames_raster",
        objective="autoregressive",
        data="frames",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=64,
            num_layers=3,
            num_heads=4,
            mlp_width=160,
            rope=None,
            tied=True,
            max_positions=RECORD,
            mask_id=MASK_ID,
            name="frames_raster",
        ),
        steps=2500,
        row_len=RECORD,
        batch_size=32,
        optimizer="muon",
        learning_rate=1e-2,
        schedule="stable",
        decay_steps=800,
        ema_decay=0.99,
        checkpoint_every=2500,
        eval_every=500,
        eval_rows=32,
    )
