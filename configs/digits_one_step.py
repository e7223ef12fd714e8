"""Digits out of noise in one or two passes, learned from the raster model.

    python -m pdecode.train.noise_pairs configs/digits_one_step.py digits_raster2d
    pdecode train --config configs/digits_one_step.py

Data: what digits_raster2d draws of noise, a class and 64 pixels, written by the first
command; the code of a grey level is its own height, from -1 to 1. Hardware: an
accelerator, under a minute.
"""

from pdecode.models.config import Config, Rope
from pdecode.models.digits import MASK_ID, NUM_LEVELS, RECORD, SIDE, VOCAB_SIZE
from pdecode.train import TrainConfig
from pdecode.train.objectives.distilled_decoding import NAME_LENGTH


def get_config() -> TrainConfig:
    half = (NUM_LEVELS - 1) / 2
    return TrainConfig(
        name="digits_one_step",
        objective="distilled_decoding",
        options={
            "codes": tuple((level / half - 1,) for level in range(NUM_LEVELS)),
            "starts": (0, 24),
        },
        data="rows",
        data_dir="results/digits_pairs",
        model=Config(
            vocab_size=VOCAB_SIZE,
            width=128,
            num_layers=6,
            num_heads=4,
            mlp_width=320,
            rope=Rope(theta=100.0, columns=SIDE, before=1),
            attention="bidirectional",
            predicts="masked",
            mask_id=MASK_ID,
            name="digits_one_step",
        ),
        steps=6000,
        row_len=RECORD + NAME_LENGTH,
        batch_size=128,
        optimizer="muon",
        learning_rate=5e-3,
        schedule="stable",
        decay_steps=2000,
        ema_decay=0.999,
        checkpoint_every=6000,
        eval_every=1000,
        eval_rows=256,
    )
